// The memory that entries own, in blocks of 64 bytes: planes, upper tables, free ones of each size, and reservations, so that
// an operation that lacks room is refused before it changes anything.

import { Control, ctl } from './control';
import { childPtr, flagsOf, indexAt, LT, pagesOf, presentCount, TABLE, tagOf } from './entry';
import { CLASS_PLANE, CLASS_QUAD, CLASS_UPPER, QUAD_BLOCKS, UPPER_BLOCKS } from './layout';

/**
 * Whether `uppers` upper tables and `leafs` leaf-table blocks can be had, each leaf table growing from no plane to
 * eight. Called once before an operation changes anything; after it no allocation of the operation can fail.
 */
export function reserve(uppers: u32, leafs: u32): bool {
  return reserveBlocks(<u64>uppers, <u64>leafs * LEAF_GROWTH_BLOCKS);
}

/** What the operation under way reserved; a pause keeps it in memory (pause.ts). */
export let reservedUppers: u64 = 0;
export let reservedBlocks: u64 = 0;

/** Blocks that a leaf table takes as it gets all planes: a single one, which it lets go, then a quad, then another. */
export const LEAF_GROWTH_BLOCKS: u64 = 1 + 4 + 4;

/**
 * As reserve(), with leaf-table blocks counted in units of 64 bytes. What a paused operation reserved stays reserved:
 * vCPUs may fault meanwhile.
 */
function reserveBlocks(uppers: u64, blocks: u64): bool {
  if (ctl.failReservation != 0) {
    ctl.failReservation--;
    if (ctl.failReservation == 0) return false;
  }
  if (ctl.paused != 0) {
    uppers += ctl.heldUppers;
    blocks += <u64>ctl.heldBlocks;
  } else {
    reservedUppers = uppers;
    reservedBlocks = blocks;
  }
  let left: u64 = 0;
  if (ctl.arenaBlocks > ctl.arenaNext) left = <u64>(ctl.arenaBlocks - ctl.arenaNext);
  // Nearly always there is more than enough that was never used.
  if (uppers * UPPER_BLOCKS + blocks + 2 * QUAD_BLOCKS <= left) return true;
  // allocatePlane() cuts quads into single planes, which leaves less than one of them unused.
  const wanted = ((blocks + 3) >> 2) + 2;
  const freeUppers = <u64>ctl.stackCount2;
  const freeQuads = <u64>ctl.stackCount1;
  if (uppers <= freeUppers) return wanted <= freeQuads + (left >> 2) + (freeUppers - uppers) * (UPPER_BLOCKS / 4);
  const forUppers = (uppers - freeUppers) * UPPER_BLOCKS;
  return forUppers <= left && wanted <= freeQuads + ((left - forUppers) >> 2);
}

/**
 * Whether `uppers` upper tables and `blocks` blocks are a small part of what was never used, for an operation that cannot
 * pause: then it need not add up what it needs exactly. If not, or if a test counts reservations, it must.
 */
export function reserveAmply(uppers: u64, blocks: u64): bool {
  if ((ctl.failReservation | ctl.paused | ctl.stopMask) != 0 || ctl.budget < Infinity) return false;
  return uppers * UPPER_BLOCKS + blocks + 2 * QUAD_BLOCKS <= <u64>ctl.arenaBlocks - <u64>ctl.arenaNext;
}

// What an operation over many places needs is summed up place by place first: wantNothing(), want…(), reserveWanted().

let wantedUppers: u64 = 0;
let wantedBlocks: u64 = 0;
export function wantNothing(): void {
  wantedUppers = 0;
  wantedBlocks = 0;
}
export function want(uppers: u64, leafs: u64): void {
  wantedUppers += uppers;
  wantedBlocks += leafs * LEAF_GROWTH_BLOCKS;
}
/** Adds leaf tables that hold one plane. */
export function wantBlocksOf(leafs: u64): void {
  wantedBlocks += leafs;
}
export function reserveWanted(): bool {
  return reserveBlocks(wantedUppers, wantedBlocks);
}

/** Adds what a boundary at `key` needs at most: upper tables down to it, and a leaf table where it falls inside one. */
function wantCut(entryPtr: usize, level: i32, key: u64): void {
  if ((key & 511) != 0) wantedBlocks += LEAF_GROWTH_BLOCKS;
  while (level > 2 && (key & (pagesOf(level) - 1)) != 0) {
    if (tagOf(entryPtr) != TABLE) {
      wantedUppers += <u64>(level - 2);
      return;
    }
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
}
export function wantCuts(entryPtr: usize, level: i32, start: u64, end: u64): void {
  wantCut(entryPtr, level, start);
  wantCut(entryPtr, level, end);
}

/**
 * Adds what it takes at most to change any keys of [start, end), each on its own, in `flags` flags. `mayFill`: keys that are
 * absent now may be present by then.
 */
export function wantScattered(entryPtr: usize, level: i32, start: u64, end: u64, flags: u32, mayFill: bool): void {
  const tag = tagOf(entryPtr);
  if (start >= end) return;
  if (tag == LT) {
    if (mayFill) wantedBlocks += LEAF_GROWTH_BLOCKS;
    else if (presentCount(entryPtr) != 0) wantedBlocks += blocksToGrow(load<u32>(entryPtr) >> 24, flags);
    return;
  }
  if (tag != TABLE) {
    if (!mayFill && (flagsOf(entryPtr) & 1) == 0) return;
    for (let at = level; at > 2; at--) wantedUppers += spanned(at, start, end);
    wantedBlocks += spanned(2, start, end) * (mayFill ? LEAF_GROWTH_BLOCKS : blocksToGrow(0, flags));
    return;
  }
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    wantScattered(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, flags, mayFill);
    at = next;
  }
}
/** Adds room for every stored leaf table that [start, end) meets to take all planes. */
export function wantLeafTables(entryPtr: usize, level: i32, start: u64, end: u64): void {
  const tag = tagOf(entryPtr);
  if (tag == LT) wantedBlocks += LEAF_GROWTH_BLOCKS;
  if (tag != TABLE || start >= end) return;
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    wantLeafTables(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next);
    at = next;
  }
}

/** Entries of `level` that [start, end) meets. */
function spanned(level: i32, start: u64, end: u64): u64 {
  const shift = 9 * (level - 1);
  return ((end - 1) >> shift) - (start >> shift) + 1;
}
/** Blocks that a leaf table takes at most when `flags` more bits differ; `allocated` planes have their place. */
function blocksToGrow(allocated: u32, flags: u32): u64 {
  const before = popcnt(allocated);
  const after = before + flags;
  let blocks: u64 = before == 0 ? 1 : 0;
  if (before < 2 && after >= 2) blocks += QUAD_BLOCKS;
  if (before < 5 && after >= 5) blocks += QUAD_BLOCKS;
  return blocks;
}

function stackBasePtr(sizeClass: i32): usize {
  return changetype<usize>(ctl) + offsetof<ControlStacks>('base') + ((<usize>sizeClass) << 2);
}
function stackCountPtr(sizeClass: i32): usize {
  return changetype<usize>(ctl) + offsetof<ControlStacks>('count') + ((<usize>sizeClass) << 2);
}
/** Where the three stack bases and counts stand in Control. */
@unmanaged
class ControlStacks {
  magic: u32;
  layoutVersion: u32;
  memoryBytes: u64;
  ringRecords: u32;
  arenaBase: u32;
  arenaBlocks: u32;
  arenaNext: u32;
  base: u32;
  base1: u32;
  base2: u32;
  count: u32;
}
if (offsetof<ControlStacks>('base') != offsetof<Control>('stackBase0')) ERROR('the stack bases have moved');
if (offsetof<ControlStacks>('count') != offsetof<Control>('stackCount0')) ERROR('the stack counts have moved');

function pop(sizeClass: i32): u32 {
  const countPtr = stackCountPtr(sizeClass);
  const depth = load<u32>(countPtr) - 1;
  store<u32>(countPtr, depth);
  return load<u32>(<usize>load<u32>(stackBasePtr(sizeClass)) + ((<usize>depth) << 2));
}

export function release(sizeClass: i32, block: u32): void {
  const countPtr = stackCountPtr(sizeClass);
  const depth = load<u32>(countPtr);
  store<u32>(<usize>load<u32>(stackBasePtr(sizeClass)) + ((<usize>depth) << 2), block);
  store<u32>(countPtr, depth + 1);
}

/** Where the next free block of a class goes: for releases one after the other, which releasedTo() ends. */
export function freeTop(sizeClass: i32): usize {
  return <usize>load<u32>(stackBasePtr(sizeClass)) + ((<usize>load<u32>(stackCountPtr(sizeClass))) << 2);
}
export function releasedTo(sizeClass: i32, top: usize): void {
  store<u32>(stackCountPtr(sizeClass), <u32>((top - <usize>load<u32>(stackBasePtr(sizeClass))) >> 2));
}

/** `blocks` blocks that were never used; 0xffffffff if the arena has no more. */
function fresh(blocks: u32): u32 {
  const next = ctl.arenaNext;
  if (next + blocks > ctl.arenaBlocks) return 0xffffffff;
  ctl.arenaNext = next + blocks;
  return next;
}

/** A block of 64 bytes: a free one, else part of a quad. */
export function allocatePlane(): u32 {
  if (ctl.stackCount0 > 0) return pop(CLASS_PLANE);
  const quad = allocateQuad();
  for (let at = QUAD_BLOCKS - 1; at > 0; at--) release(CLASS_PLANE, quad + at);
  return quad;
}

/** Four blocks: free ones, else fresh ones, else part of a free upper table. The order is what reserveBlocks() counts on. */
export function allocateQuad(): u32 {
  if (ctl.stackCount1 > 0) return pop(CLASS_QUAD);
  const block = fresh(QUAD_BLOCKS);
  if (block != 0xffffffff) return block;
  assert(ctl.stackCount2 > 0, 'an allocation was not reserved');
  const upper = pop(CLASS_UPPER);
  for (let at = QUAD_BLOCKS; at < UPPER_BLOCKS; at += QUAD_BLOCKS) release(CLASS_QUAD, upper + at);
  return upper;
}

export function allocateUpper(): u32 {
  if (ctl.stackCount2 > 0) return pop(CLASS_UPPER);
  const block = fresh(UPPER_BLOCKS);
  assert(block != 0xffffffff, 'an upper table was not reserved');
  return block;
}
