// How a table is stored: bit-plane leaf tables, counts cached in the parent, uniform subtrees. Knows no KVM.
//
// A tree maps keys (gfns, hva pages, file pages) to 8 flag bits. Bit 0 means present; the others count only where it
// is set. The page tables of the guest, the host's page table, attributes, file residency, page contents, mixed
// regions and dirty bitmaps are all trees. A tree is one entry, held by its owner.
//
// Entry, 16 bytes. An entry at level L covers 512^(L-1) keys.
//
//   0            4            8            12           16
//   ├────────────┼────────────┼────────────┼────────────┤
//   │ descriptor │ block      │ counts     │ block2     │
//   └────────────┴────────────┴────────────┴────────────┘
//   descriptor: tag 0-2 │ leaf level 3-6 │ flags 8-15 │ planes 16-23 │ allocated planes 24-31
//   counts:     present 0-9 │ accessed 10-19 │ side records 20-29 │ mark 30
//
//   EMPTY    nothing below, no table linked
//   LEAF     one leaf of this entry's own level (2 or above)
//   TABLE    an upper table: 512 entries in `block`
//   LT       a leaf table (level-2 entries only): `flags` hold for every present key, except the bits in `planes`,
//            whose 512 values are 64-byte planes: those of bits 0-3 in `block`, of bits 4-7 in `block2`
//   UNIFORM  tables linked all the way down to `leaf level`, whose entries are all alike: `flags`, or nothing
//   CHUNKS   512 leaf tables (level-3 entries only), each full of keys with `flags` or empty: a plane in `block` has a bit
//            for each, `present` counts the full ones, of which there are 1 to 511. What 2 MiB zaps leave of a UNIFORM GiB
//
// `planes` are the bits that differ, `allocated` those with a place in a block: a plane that turns uniform keeps its
// place, so that aging and write-protecting a whole table touch the entry alone. A group of four bits with one plane has
// a block of 64 bytes; with more it has one of 256, and each bit its fixed place there: no plane moves twice.
// Left out: pfns. They follow from the backing (host_mm.ts, guest_memfd.ts).

import { Control, ctl, GUEST_PATH, HOST_PATH } from './control';
import { CLASS_PLANE, CLASS_QUAD, CLASS_UPPER, QUAD_BLOCKS, UPPER_BLOCKS } from './layout';

export const ENTRY_BYTES: usize = 16;
export const EMPTY: u32 = 0;
export const LEAF: u32 = 1;
export const TABLE: u32 = 2;
export const LT: u32 = 3;
export const UNIFORM: u32 = 4;
export const CHUNKS: u32 = 5;
/** What the descriptors of CHUNKS, and of UNIFORM entries that may become such, hold in their lowest 7 bits. */
const CHUNKS_OF_4K: u32 = CHUNKS | (1 << 3);
export const UNIFORM_OF_4K: u32 = UNIFORM | (1 << 3);

/** Bit 2 is the one whose present keys are counted in the entry: A of an spte. */
export const COUNTED_BIT: u32 = 4;
export const COUNTED_SHIFT: u32 = 2;

/** Set in `counts` by the owner: an entry so marked never folds into its parent (an nx-disallowed table). */
export const MARK: u32 = 1 << 30;
/** A mark of its own beside MARK: the table stands where a huge page would. */
export const MARK_TRACKED: u32 = 1 << 31;
const SIDE_ONE: u32 = 1 << 20;
const SIDE_MASK: u32 = 0x3ff << 20;

/** Keys covered by one entry of `level`. */
export function pagesOf(level: i32): u64 {
  return (<u64>1) << (9 * (level - 1));
}

export function tagOf(entryPtr: usize): u32 {
  return load<u32>(entryPtr) & 7;
}
export function flagsOf(entryPtr: usize): u32 {
  return (load<u32>(entryPtr) >> 8) & 255;
}
export function leafLevelOf(entryPtr: usize): i32 {
  return (load<u32>(entryPtr) >> 3) & 15;
}
/** The bits that differ within a leaf table. */
export function planesOf(entryPtr: usize): u32 {
  return (load<u32>(entryPtr) >> 16) & 255;
}
/** Present keys of a leaf table. */
export function presentCount(entryPtr: usize): u32 {
  return load<u32>(entryPtr, 8) & 0x3ff;
}
export function sideCount(entryPtr: usize): u32 {
  return (load<u32>(entryPtr, 8) >> 20) & 0x3ff;
}
export function addSide(entryPtr: usize): void {
  store<u32>(entryPtr, load<u32>(entryPtr, 8) + SIDE_ONE, 8);
}
export function dropSide(entryPtr: usize): void {
  store<u32>(entryPtr, load<u32>(entryPtr, 8) - SIDE_ONE, 8);
}
export function isMarked(entryPtr: usize): bool {
  return (load<u32>(entryPtr, 8) & MARK) != 0;
}
export function isTracked(entryPtr: usize): bool {
  return (load<u32>(entryPtr, 8) & MARK_TRACKED) != 0;
}
export function setMark(entryPtr: usize, mark: u32): void {
  store<u32>(entryPtr, load<u32>(entryPtr, 8) | mark, 8);
}
export function clearMarks(entryPtr: usize): void {
  store<u32>(entryPtr, load<u32>(entryPtr, 8) & ~(MARK | MARK_TRACKED), 8);
}

function descriptor(tag: u32, leafLevel: i32, flags: u32): u32 {
  return tag | ((<u32>leafLevel) << 3) | (flags << 8);
}

/** Writes an entry that owns no block; what was there must have been freed. Keeps nothing of the old counts. */
export function setEmpty(entryPtr: usize): void {
  store<u64>(entryPtr, 0);
  store<u64>(entryPtr, 0, 8);
}
export function setLeaf(entryPtr: usize, level: i32, flags: u32): void {
  store<u64>(entryPtr, descriptor(LEAF, level, flags));
  store<u64>(entryPtr, 0, 8);
}
/** Tables down to `leafLevel` linked below an entry of `level`, all entries there alike. */
export function setUniform(entryPtr: usize, level: i32, leafLevel: i32, flags: u32): void {
  if (level == 2) {
    store<u64>(entryPtr, descriptor(LT, 1, flags));
    store<u64>(entryPtr, flags & 1 ? 512 | (flags & COUNTED_BIT ? 512 << 10 : 0) : 0, 8);
  } else {
    store<u64>(entryPtr, descriptor(UNIFORM, leafLevel, flags));
    store<u64>(entryPtr, 0, 8);
  }
}

// --- Blocks ----------------------------------------------------------------------------------------------------------

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

/** Blocks that a leaf table takes as it gets all planes: each group lets go of its single plane when it has the quad. */
export const LEAF_GROWTH_BLOCKS: u64 = 2 * (1 + 4);

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
  // allocate() cuts quads into single planes, which leaves less than one of them unused.
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
export function wantCut(entryPtr: usize, level: i32, key: u64): void {
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
 * Adds what it takes at most to change any keys of [start, end), each on its own, in one flag. `mayFill`: keys that are
 * absent now may be present by then.
 */
export function wantScattered(entryPtr: usize, level: i32, start: u64, end: u64, mayFill: bool): void {
  const tag = tagOf(entryPtr);
  if (start >= end) return;
  if (tag == LT) {
    if (mayFill) wantedBlocks += LEAF_GROWTH_BLOCKS;
    else if (presentCount(entryPtr) != 0) wantedBlocks += blocksToGrow(load<u32>(entryPtr) >> 24);
    return;
  }
  if (tag != TABLE) {
    if (!mayFill && (flagsOf(entryPtr) & 1) == 0) return;
    for (let at = level; at > 2; at--) wantedUppers += spanned(at, start, end);
    wantedBlocks += spanned(2, start, end) * (mayFill ? LEAF_GROWTH_BLOCKS : 1);
    return;
  }
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    wantScattered(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, mayFill);
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
/** Blocks that a leaf table takes when one more of the bits 0-3 differs; `allocated` planes have their place. */
function blocksToGrow(allocated: u32): u64 {
  const group = allocated & 15;
  if (group == 0) return 1;
  return isSingle(group) ? 4 : 0;
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

function release(sizeClass: i32, block: u32): void {
  const countPtr = stackCountPtr(sizeClass);
  const depth = load<u32>(countPtr);
  store<u32>(<usize>load<u32>(stackBasePtr(sizeClass)) + ((<usize>depth) << 2), block);
  store<u32>(countPtr, depth + 1);
}

/** `blocks` blocks that were never used; 0xffffffff if the arena has no more. */
function fresh(blocks: u32): u32 {
  const next = ctl.arenaNext;
  if (next + blocks > ctl.arenaBlocks) return 0xffffffff;
  ctl.arenaNext = next + blocks;
  return next;
}

/** A block of 64 bytes: a free one, else part of a quad. */
function allocatePlane(): u32 {
  if (ctl.stackCount0 > 0) return pop(CLASS_PLANE);
  const quad = allocateQuad();
  for (let at = QUAD_BLOCKS - 1; at > 0; at--) release(CLASS_PLANE, quad + at);
  return quad;
}

/** Four blocks: free ones, else fresh ones, else part of a free upper table. The order is what reserveBlocks() counts on. */
function allocateQuad(): u32 {
  if (ctl.stackCount1 > 0) return pop(CLASS_QUAD);
  const block = fresh(QUAD_BLOCKS);
  if (block != 0xffffffff) return block;
  assert(ctl.stackCount2 > 0, 'an allocation was not reserved');
  const upper = pop(CLASS_UPPER);
  for (let at = QUAD_BLOCKS; at < UPPER_BLOCKS; at += QUAD_BLOCKS) release(CLASS_QUAD, upper + at);
  return upper;
}

function allocateUpper(): u32 {
  if (ctl.stackCount2 > 0) return pop(CLASS_UPPER);
  const block = fresh(UPPER_BLOCKS);
  assert(block != 0xffffffff, 'an upper table was not reserved');
  return block;
}

function blockPtr(block: u32): usize {
  return <usize>ctl.arenaBase + ((<usize>block) << 6);
}

// --- Leaf tables -----------------------------------------------------------------------------------------------------

/** Whether a group of allocated planes (four bits, not 0) is one plane alone, in a block of 64 bytes. */
function isSingle(group: u32): bool {
  return (group & (group - 1)) == 0;
}

function releasePlanes(entryPtr: usize): void {
  const allocated = load<u32>(entryPtr) >> 24;
  const low = allocated & 15;
  const high = allocated >> 4;
  if (low != 0) release(isSingle(low) ? CLASS_PLANE : CLASS_QUAD, load<u32>(entryPtr, 4));
  if (high != 0) release(isSingle(high) ? CLASS_PLANE : CLASS_QUAD, load<u32>(entryPtr, 12));
}

// A block of 256 bytes holds two pairs of planes, bits 0 and 2 of the group and bits 1 and 3, each pair word by word: of a
// page, presence and A are in one cache line.

/** From a word of presence to the counted bit's, where both have a plane: both stand in a block of 256 bytes then. */
const COUNTED_BESIDE: usize = 8;

function placeInQuad(bit: u32): usize {
  return ((<usize>(bit & 1)) << 7) | ((<usize>(bit & 2)) << 2);
}

/** Word `word` of the plane of `bit`, which must be allocated. */
function wordPtr(entryPtr: usize, bit: u32, word: i32): usize {
  const group = (load<u32>(entryPtr) >> (24 + (bit & 4))) & 15;
  const block = blockPtr(load<u32>(entryPtr + ((bit & 4) << 1), 4));
  const offset = (<usize>word) << 3;
  return block + (isSingle(group) ? offset : (offset << 1) + placeInQuad(bit));
}

/** Bytes from a word of the plane of `bit`, which must be allocated, to its next. */
function wordStep(entryPtr: usize, bit: u32): usize {
  return isSingle((load<u32>(entryPtr) >> (24 + (bit & 4))) & 15) ? 8 : 16;
}

/** Gives `bit` a plane that holds its uniform value. */
function addPlane(entryPtr: usize, bit: u32): void {
  const desc = load<u32>(entryPtr);
  const mask: u32 = 1 << bit;
  if ((desc & (mask << 24)) == 0) {
    const group = (desc >> (24 + (bit & 4))) & 15;
    const at = entryPtr + ((bit & 4) << 1);
    if (group == 0) {
      store<u32>(at, allocatePlane(), 4);
    } else if (isSingle(group)) {
      const block = load<u32>(at, 4);
      const quad = allocateQuad();
      const from = blockPtr(block);
      const to = blockPtr(quad) + placeInQuad(ctz(group));
      for (let offset: usize = 0; offset < 64; offset += 8) store<u64>(to + (offset << 1), load<u64>(from + offset));
      release(CLASS_PLANE, block);
      store<u32>(at, quad, 4);
    }
  }
  store<u32>(entryPtr, desc | (mask << 24) | (mask << 16));
  const value: u64 = (desc >> (8 + bit)) & 1 ? ~(<u64>0) : 0;
  const step = wordStep(entryPtr, bit);
  const first = wordPtr(entryPtr, bit, 0);
  for (let at = first; at < first + 8 * step; at += step) store<u64>(at, value);
}

/** Makes `bit` uniform; its plane keeps its place. */
function dropPlane(entryPtr: usize, bit: u32, value: u32): void {
  const mask = (1 << bit) as u32;
  store<u32>(entryPtr, (load<u32>(entryPtr) & ~(mask << 8) & ~(mask << 16)) | ((value & 1) << (8 + bit)));
}

/** Bits [from, to) that fall in word `word` of a plane. */
export function wordMask(word: i32, from: i32, to: i32): u64 {
  const low = from - (word << 6);
  const high = to - (word << 6);
  let mask: u64 = ~(<u64>0);
  if (low > 0) mask <<= <u64>low;
  if (high < 64) mask &= ~(~(<u64>0) << (<u64>high));
  return mask;
}

/** One word of `bit`'s values, from its plane or its uniform value. */
export function valueWord(entryPtr: usize, bit: u32, word: i32): u64 {
  const desc = load<u32>(entryPtr);
  if ((desc >> (16 + bit)) & 1) return load<u64>(wordPtr(entryPtr, bit, word));
  return (desc >> (8 + bit)) & 1 ? ~(<u64>0) : 0;
}

/** An empty leaf table that keeps its side records and its mark. */
function emptyLeafTable(entryPtr: usize): void {
  const keep = load<u32>(entryPtr, 8) & (SIDE_MASK | MARK | MARK_TRACKED);
  releasePlanes(entryPtr);
  store<u64>(entryPtr, descriptor(LT, 1, 0));
  store<u64>(entryPtr, keep, 8);
}

/** Turns planes whose present values are all alike into flags, and frees the block once none differs. */
function normalise(entryPtr: usize): void {
  const present = presentCount(entryPtr);
  if (present == 0) {
    emptyLeafTable(entryPtr);
    return;
  }
  if (present == 512 && (planesOf(entryPtr) & 1) != 0) dropPlane(entryPtr, 0, 1);
  for (let bit: u32 = 1; bit < 8; bit++) {
    if (((planesOf(entryPtr) >> bit) & 1) == 0) continue;
    let set = false;
    let clear = false;
    for (let word = 0; word < 8; word++) {
      const presentWord = valueWord(entryPtr, 0, word);
      const value = load<u64>(wordPtr(entryPtr, bit, word));
      if (value & presentWord) set = true;
      if (~value & presentWord) clear = true;
    }
    if (!(set && clear)) dropPlane(entryPtr, bit, set ? 1 : 0);
  }
  if (planesOf(entryPtr) == 0) forgetPlanes(entryPtr);
}

/** Frees the planes of a leaf table in which no bit differs. */
function forgetPlanes(entryPtr: usize): void {
  releasePlanes(entryPtr);
  store<u32>(entryPtr, load<u32>(entryPtr) & 0x00ffffff);
  store<u32>(entryPtr, 0, 4);
  store<u32>(entryPtr, 0, 12);
}

/** The flags of key `index` in a leaf table; 0 if not present. */
export function ltFlags(entryPtr: usize, index: i32): u32 {
  const desc = load<u32>(entryPtr);
  let flags = (desc >> 8) & 255;
  const shift = <u64>(index & 63);
  for (let left = (desc >> 16) & 255; left != 0; left &= left - 1) {
    const bit = ctz(left);
    const value = <u32>(load<u64>(wordPtr(entryPtr, bit, index >> 6)) >> shift) & 1;
    flags = (flags & ~((<u32>1) << bit)) | (value << bit);
    if ((flags & 1) == 0) return 0;
  }
  return flags & 1 ? flags : 0;
}

/** Sets keys [from, to) of a leaf table present with `flags`. */
export function ltSet(entryPtr: usize, from: i32, to: i32, flags: u32): void {
  const keep = load<u32>(entryPtr, 8) & (SIDE_MASK | MARK | MARK_TRACKED);
  if (from == 0 && to == 512) {
    releasePlanes(entryPtr);
    setUniform(entryPtr, 2, 1, flags);
    store<u32>(entryPtr, load<u32>(entryPtr, 8) | keep, 8);
    return;
  }
  const isAccessed = (flags & COUNTED_BIT) != 0;
  let counts = <u32>(to - from) | (isAccessed ? (<u32>(to - from)) << 10 : 0);
  const firstWord = from >> 6;
  const lastWord = (to - 1) >> 6;
  if (presentCount(entryPtr) == 0) {
    // Nothing else to differ from: the flags are uniform, presence alone has a plane.
    emptyLeafTable(entryPtr);
    addPlane(entryPtr, 0);
    store<u32>(entryPtr, (load<u32>(entryPtr) & ~0xff00) | ((flags & ~1) << 8));
    counts |= keep;
  } else {
    // The keys are counted anew: what they count for now is taken off word by word.
    counts += load<u32>(entryPtr, 8);
    const desc = load<u32>(entryPtr);
    for (let left = ((desc >> 8) ^ flags) & 0xfe & ~(desc >> 16); left != 0; left &= left - 1) {
      addPlane(entryPtr, ctz(left));
    }
  }
  const planes = planesOf(entryPtr);
  for (let word = firstWord; word <= lastWord; word++) {
    const mask = wordMask(word, from, to);
    let were: u64 = mask;
    if (planes & 1) {
      const ptr = wordPtr(entryPtr, 0, word);
      were &= load<u64>(ptr);
      store<u64>(ptr, load<u64>(ptr) | mask);
    }
    if (were != 0) {
      counts -= <u32>popcnt(were);
      counts -= (<u32>popcnt(were & valueWord(entryPtr, COUNTED_SHIFT, word))) << 10;
    }
    for (let left = planes & 0xfe; left != 0; left &= left - 1) {
      const bit = ctz(left);
      const ptr = wordPtr(entryPtr, bit, word);
      store<u64>(ptr, (flags >> bit) & 1 ? load<u64>(ptr) | mask : load<u64>(ptr) & ~mask);
    }
  }
  store<u32>(entryPtr, counts, 8);
  if ((counts & 0x3ff) == 512) normalise(entryPtr);
}

/** As ltSet() for one key that is absent. */
export function ltAdd(entryPtr: usize, index: i32, flags: u32): void {
  const desc = load<u32>(entryPtr);
  const counts = load<u32>(entryPtr, 8);
  const planes = (desc >> 16) & 255;
  const others = counts & 0x3ff;
  // The first key decides what is uniform, the last one normalises, and a bit that starts to differ takes a plane.
  if (others == 0 || others == 511 || (((desc >> 8) ^ flags) & 0xfe & ~planes) != 0) {
    ltSet(entryPtr, index, index + 1, flags);
    return;
  }
  let mask: u64 = 1;
  mask <<= <u64>(index & 63);
  for (let left = planes; left != 0; left &= left - 1) {
    const bit = ctz(left);
    const ptr = wordPtr(entryPtr, bit, index >> 6);
    const value = load<u64>(ptr);
    store<u64>(ptr, (flags >> bit) & 1 ? value | mask : value & ~mask);
  }
  store<u32>(entryPtr, counts + 1 + (flags & COUNTED_BIT ? 1 << 10 : 0), 8);
}

/** Makes every key of a leaf table absent. Returns how many were present. */
export function ltEmpty(entryPtr: usize): u32 {
  const present = presentCount(entryPtr);
  if (present != 0) emptyLeafTable(entryPtr);
  return present;
}

/** Makes keys [from, to) of a leaf table absent. Returns how many were present. */
export function ltClear(entryPtr: usize, from: i32, to: i32): u32 {
  if (from == 0 && to == 512) return ltEmpty(entryPtr);
  let cleared: u32 = 0;
  while (from < to) {
    const end = min((from | 63) + 1, to);
    cleared += ltClearInWord(entryPtr, from, end);
    from = end;
  }
  return cleared;
}

/** As ltClear() of keys that one word of presence holds, [from, to). */
function ltClearInWord(entryPtr: usize, from: i32, to: i32): u32 {
  const counts = load<u32>(entryPtr, 8);
  if ((counts & 0x3ff) == 0) return 0;
  if ((planesOf(entryPtr) & 1) == 0) addPlane(entryPtr, 0);
  const desc = load<u32>(entryPtr);
  const ptr = wordPtr(entryPtr, 0, from >> 6);
  const value = load<u64>(ptr);
  // Whether any is present is for no branch to guess: where pages are zapped at random it is wrong half of the time.
  const others = <u64>(64 + from - to);
  const place = <u64>(from & 63);
  const gone = value & ((~(<u64>0) >> others) << place);
  const cleared = <u32>popcnt(gone);
  let accessed: u32 = 0;
  if (desc & (COUNTED_BIT << 16)) accessed = <u32>popcnt(gone & load<u64>(ptr, COUNTED_BESIDE));
  else if (desc & (COUNTED_BIT << 8)) accessed = cleared;
  store<u64>(ptr, value ^ gone);
  store<u32>(entryPtr, counts - cleared - (accessed << 10), 8);
  if ((counts & 0x3ff) == cleared) emptyLeafTable(entryPtr);
  return cleared;
}

/** Words of the keys chosen by ltSelect(). */
const SELECTION: usize = 512;

/** Marks in SELECTION, in the words that [from, to) meets, the present keys that have all of `need`. Returns how many. */
function ltSelect(entryPtr: usize, from: i32, to: i32, need: u32): u32 {
  let selected: u32 = 0;
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    let value = valueWord(entryPtr, 0, word) & wordMask(word, from, to);
    for (let left = need & 0xfe; left != 0; left &= left - 1) value &= valueWord(entryPtr, ctz(left), word);
    store<u64>(SELECTION + ((<usize>word) << 3), value);
    selected += <u32>popcnt(value);
  }
  return selected;
}

/** How many present keys of [from, to) have all of `need`. */
export function ltCount(entryPtr: usize, from: i32, to: i32, need: u32): u32 {
  const desc = load<u32>(entryPtr);
  if (((desc >> 8) & need & ~((desc >> 16) & 255)) != (need & ~((desc >> 16) & 255))) return 0;
  if (from == 0 && to == 512) {
    if ((need & ~1 & ((desc >> 16) & 255)) == 0) return presentCount(entryPtr);
    if ((need & ~1) == COUNTED_BIT) return (load<u32>(entryPtr, 8) >> 10) & 0x3ff;
  }
  return ltSelect(entryPtr, from, to, need);
}

/** Clears `clear` and sets `set` in the present keys of [from, to) that have all of `need`. Returns how many. */
export function ltModify(entryPtr: usize, from: i32, to: i32, need: u32, clear: u32, set: u32): u32 {
  const desc = load<u32>(entryPtr);
  const planes = (desc >> 16) & 255;
  if (((desc >> 8) & need & ~planes) != (need & ~planes)) return 0;
  const whole = from == 0 && to == 512;
  if (whole && need == (COUNTED_BIT | 1) && clear == COUNTED_BIT && set == 0) return ltClearCounted(entryPtr);
  // Every present key that lacks `need` may be cleared with the rest if all that is needed is what is cleared.
  const all = whole && ((need & ~1 & planes) == 0 || ((need & ~1) == clear && set == 0));
  let changed: u32;
  if (all) {
    changed = ltCount(entryPtr, 0, 512, need);
    if (changed == 0) return 0;
    const both = (clear | set) & 0xfe;
    const on = set & ~clear;
    store<u32>(entryPtr, (load<u32>(entryPtr) & ~((both << 8) | (both << 16))) | (on << 8));
    const present = presentCount(entryPtr);
    if ((clear | set) & COUNTED_BIT) {
      const counts = load<u32>(entryPtr, 8) & ~(0x3ff << 10);
      store<u32>(entryPtr, set & COUNTED_BIT ? counts | (present << 10) : counts, 8);
    }
    if (planesOf(entryPtr) == 0 && load<u32>(entryPtr) >> 24 != 0) forgetPlanes(entryPtr);
    return changed;
  }
  changed = ltSelect(entryPtr, from, to, need);
  if (changed == 0) return 0;
  for (let left = (clear | set) & 0xfe; left != 0; left &= left - 1) {
    const bit = ctz(left);
    const mask: u32 = 1 << bit;
    const want = (set & mask) != 0;
    if ((planesOf(entryPtr) & mask) == 0) {
      if (((flagsOf(entryPtr) & mask) != 0) == want) continue;
      addPlane(entryPtr, bit);
    }
    let were: u32 = 0;
    for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
      const ptr = wordPtr(entryPtr, bit, word);
      const chosen = load<u64>(SELECTION + ((<usize>word) << 3));
      const before = load<u64>(ptr);
      were += <u32>popcnt(before & chosen);
      store<u64>(ptr, want ? before | chosen : before & ~chosen);
    }
    if (mask == COUNTED_BIT) {
      store<u32>(entryPtr, load<u32>(entryPtr, 8) + (((want ? changed : 0) - were) << 10), 8);
    }
  }
  if (presentCount(entryPtr) == 512) normalise(entryPtr);
  return changed;
}

// Masks stand for the 512 keys of a leaf table in memory: eight words, a bit for each key.

/** Clears flag `bit`, not the counted one, in the present keys that `masks` choose. Returns how many had it. */
export function ltTakeMasked(entryPtr: usize, bit: u32, masks: usize): u32 {
  let taken: u32 = 0;
  for (let word = 0; word < 8; word++) {
    const chosen = load<u64>(masks + ((<usize>word) << 3));
    taken += <u32>popcnt(chosen & valueWord(entryPtr, 0, word) & valueWord(entryPtr, bit, word));
  }
  if (taken == 0) return 0;
  if (((planesOf(entryPtr) >> bit) & 1) == 0) addPlane(entryPtr, bit);
  for (let word = 0; word < 8; word++) {
    const chosen = load<u64>(masks + ((<usize>word) << 3)) & valueWord(entryPtr, 0, word);
    const ptr = wordPtr(entryPtr, bit, word);
    store<u64>(ptr, load<u64>(ptr) & ~chosen);
  }
  if (presentCount(entryPtr) == 512) normalise(entryPtr);
  return taken;
}

/** Makes the keys that `masks` choose absent. */
function ltClearMasked(entryPtr: usize, masks: usize): void {
  if (presentCount(entryPtr) == 0) return;
  if ((planesOf(entryPtr) & 1) == 0) addPlane(entryPtr, 0);
  let cleared: u32 = 0;
  let accessed: u32 = 0;
  for (let word = 0; word < 8; word++) {
    const ptr = wordPtr(entryPtr, 0, word);
    const value = load<u64>(ptr);
    const gone = value & load<u64>(masks + ((<usize>word) << 3));
    cleared += <u32>popcnt(gone);
    accessed += <u32>popcnt(gone & valueWord(entryPtr, COUNTED_SHIFT, word));
    store<u64>(ptr, value ^ gone);
  }
  store<u32>(entryPtr, load<u32>(entryPtr, 8) - cleared - (accessed << 10), 8);
  if (presentCount(entryPtr) == 0) emptyLeafTable(entryPtr);
}

/** As ltModify() of a whole table that clears the counted bit where it is set: the entry alone is touched. */
export function ltClearCounted(entryPtr: usize): u32 {
  const counts = load<u32>(entryPtr, 8);
  const counted = (counts >> 10) & 0x3ff;
  if (counted == 0) return 0;
  const desc = load<u32>(entryPtr) & ~((COUNTED_BIT << 8) | (COUNTED_BIT << 16));
  store<u32>(entryPtr, desc);
  store<u32>(entryPtr, counts & ~(0x3ff << 10), 8);
  if (((desc >> 16) & 255) == 0 && desc >> 24 != 0) forgetPlanes(entryPtr);
  return counted;
}

/** First index after `from` (up to `to`) whose key differs in flags from the key at `from`. */
export function ltRunEnd(entryPtr: usize, from: i32, to: i32): i32 {
  const desc = load<u32>(entryPtr);
  const planes = (desc >> 16) & 255;
  if (planes == 0) return to;
  const value = ltFlags(entryPtr, from);
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    let differs: u64 = 0;
    const presentWord = valueWord(entryPtr, 0, word);
    if (value & 1) {
      differs = ~presentWord;
      for (let bit: u32 = 1; bit < 8; bit++) {
        if (((planes >> bit) & 1) == 0) continue;
        const plane = load<u64>(wordPtr(entryPtr, bit, word));
        differs |= (value >> bit) & 1 ? ~plane : plane;
      }
    } else {
      differs = presentWord;
    }
    differs &= wordMask(word, from, to);
    if (differs != 0) return (word << 6) + <i32>ctz(differs);
  }
  return to;
}

// --- Chunks ----------------------------------------------------------------------------------------------------------

/** Whether keys are zapped in an entry of level 3 by whole leaf tables: UNIFORM with 4K keys, or what became of it. */
export function takesChunks(entryPtr: usize): bool {
  const kind = load<u32>(entryPtr) & 127;
  return kind == CHUNKS_OF_4K || (kind == UNIFORM_OF_4K && (load<u32>(entryPtr) & 0x100) != 0);
}

function chunksPtr(entryPtr: usize): usize {
  return blockPtr(load<u32>(entryPtr, 4));
}

/** The flags of the keys of chunk `index` of CHUNKS; 0 if it is empty. */
export function chunkFlags(entryPtr: usize, index: u32): u32 {
  const word = load<u64>(chunksPtr(entryPtr) + ((<usize>(index >> 6)) << 3));
  return (word >> (index & 63)) & 1 ? flagsOf(entryPtr) : 0;
}

/** First chunk after `index` that is not as full or as empty as it; 512 if all are. */
function chunkRunEnd(entryPtr: usize, index: u32): u32 {
  const isFull = chunkFlags(entryPtr, index) != 0;
  index++;
  while (index < 512 && (chunkFlags(entryPtr, index) != 0) == isFull) index++;
  return index;
}

/** How many of the chunks [from, to) are full. */
function chunksFull(entryPtr: usize, from: i32, to: i32): u32 {
  if (from >= to) return 0;
  if (from == 0 && to == 512) return presentCount(entryPtr);
  let full: u32 = 0;
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    full += <u32>popcnt(load<u64>(chunksPtr(entryPtr) + ((<usize>word) << 3)) & wordMask(word, from, to));
  }
  return full;
}

/** Present keys of [start, end), a range within CHUNKS. */
export function chunksCount(entryPtr: usize, start: u64, end: u64): u64 {
  const from = <i32>indexAt(start, 2);
  const to = <i32>indexAt(end - 1, 2) + 1;
  let keys = (<u64>chunksFull(entryPtr, from, to)) << 9;
  if (chunkFlags(entryPtr, from) != 0) keys -= start & 511;
  if (chunkFlags(entryPtr, to - 1) != 0) keys -= -end & 511;
  return keys;
}

/**
 * Empties the chunks [from, to) of an entry that takesChunks(). Returns how many were full. Requires: a block, which what is
 * reserved for a boundary path holds.
 */
export function chunksClear(entryPtr: usize, from: i32, to: i32): u32 {
  if (tagOf(entryPtr) == UNIFORM) {
    const block = allocatePlane();
    memory.fill(blockPtr(block), 255, 64);
    store<u32>(entryPtr, (load<u32>(entryPtr) & 0xff00) | CHUNKS_OF_4K | (1 << 16) | (1 << 24));
    store<u32>(entryPtr, block, 4);
    store<u64>(entryPtr, 512, 8);
  }
  let cleared: u32 = 0;
  for (let word = from >> 6; word <= (to - 1) >> 6; word++) {
    const ptr = chunksPtr(entryPtr) + ((<usize>word) << 3);
    const gone = load<u64>(ptr) & wordMask(word, from, to);
    cleared += <u32>popcnt(gone);
    store<u64>(ptr, load<u64>(ptr) ^ gone);
  }
  store<u32>(entryPtr, load<u32>(entryPtr, 8) - cleared, 8);
  if (presentCount(entryPtr) == 0) {
    releasePlanes(entryPtr);
    setUniform(entryPtr, 3, 1, 0);
  }
  return cleared;
}

/** Gives every key of CHUNKS `flags`. */
export function chunksModify(entryPtr: usize, flags: u32): void {
  store<u32>(entryPtr, (load<u32>(entryPtr) & ~0xff00) | (flags << 8));
}

// --- Upper tables ----------------------------------------------------------------------------------------------------

/** Entry `index` of the upper table that a TABLE entry links. */
export function childPtr(entryPtr: usize, index: u32): usize {
  return blockPtr(load<u32>(entryPtr, 4)) + ((<usize>index) << 4);
}
export function indexAt(key: u64, level: i32): u32 {
  return <u32>(key >> (9 * (level - 1))) & 511;
}

/** Links an upper table; what its entries hold is for the caller to write. */
function linkBlock(entryPtr: usize): usize {
  const block = allocateUpper();
  store<u32>(entryPtr, TABLE);
  store<u32>(entryPtr, block, 4);
  store<u64>(entryPtr, 0, 8);
  return blockPtr(block);
}

/** Links an upper table of 512 empty entries. */
export function linkTable(entryPtr: usize): void {
  memory.fill(linkBlock(entryPtr), 0, 8192);
}

/** Gives a UNIFORM entry of `level`, or CHUNKS, a table of its own, one level of entries deep. */
export function expand(entryPtr: usize, level: i32): void {
  if (tagOf(entryPtr) == CHUNKS) {
    expandChunks(entryPtr);
    return;
  }
  const leafLevel = leafLevelOf(entryPtr);
  const flags = flagsOf(entryPtr);
  const childLevel = level - 1;
  const first = linkBlock(entryPtr);
  if (leafLevel != childLevel) setUniform(first, childLevel, leafLevel, flags);
  else if (flags & 1) setLeaf(first, childLevel, flags);
  else setEmpty(first);
  const low = load<u64>(first);
  const high = load<u64>(first, 8);
  for (let at: usize = ENTRY_BYTES; at < 512; at += ENTRY_BYTES) {
    store<u64>(first + at, low);
    store<u64>(first + at, high, 8);
  }
  // Doubling copies: 512 bytes, 1,024, 2,048, 4,096.
  for (let filled: usize = 512; filled < 8192; filled <<= 1) memory.copy(first + filled, first, filled);
}

function expandChunks(entryPtr: usize): void {
  const block = load<u32>(entryPtr, 4);
  const flags = flagsOf(entryPtr);
  const first = linkBlock(entryPtr);
  for (let index: usize = 0; index < 512; index++) {
    const word = load<u64>(blockPtr(block) + ((index >> 6) << 3));
    setUniform(first + (index << 4), 2, 1, (word >> (<u64>index & 63)) & 1 ? flags : 0);
  }
  release(CLASS_PLANE, block);
}

/** Folds a TABLE entry of `level` whose 512 entries are alike into a UNIFORM one. */
export function fold(entryPtr: usize, level: i32): void {
  const first = childPtr(entryPtr, 0);
  const desc = load<u32>(first);
  const tag = desc & 7;
  if (tag == TABLE || desc >> 16 != 0 || isMarked(entryPtr)) return;
  const counts = load<u32>(first, 8);
  if ((counts & (SIDE_MASK | MARK | MARK_TRACKED)) != 0) return;
  if (load<u32>(first + 511 * ENTRY_BYTES) != desc) return;
  for (let at: usize = ENTRY_BYTES; at < 8192; at += ENTRY_BYTES) {
    if (load<u32>(first + at) != desc || (load<u32>(first + at, 8) & (SIDE_MASK | MARK | MARK_TRACKED)) != 0) return;
  }
  releaseUpper(load<u32>(entryPtr, 4));
  const flags = (desc >> 8) & 255;
  const leafLevel = tag == EMPTY || tag == LEAF ? level - 1 : tag == LT ? 1 : <i32>((desc >> 3) & 15);
  setUniform(entryPtr, level, leafLevel, tag == EMPTY ? 0 : flags);
}

/**
 * Whether a fold is worth a try: the entries that share 64 bytes of memory with child `index` are like it. The child has
 * just been written, so this costs no cache miss where fold() costs three.
 */
function mayFold(entryPtr: usize, index: u32): bool {
  const line = childPtr(entryPtr, index & ~3);
  const desc = load<u32>(line);
  return (
    load<u32>(line, ENTRY_BYTES) == desc &&
    load<u32>(line, 2 * ENTRY_BYTES) == desc &&
    load<u32>(line, 3 * ENTRY_BYTES) == desc
  );
}

/** Tables linked below an entry of `level` by a UNIFORM subtree down to `leafLevel`. */
export function uniformTables(level: i32, leafLevel: i32): u64 {
  let tables: u64 = 0;
  for (let at = leafLevel; at < level; at++) tables += (<u64>1) << (9 * (level - 1 - at));
  return tables;
}

/** Tables linked below an entry, the one it links included. */
export function tablesBelow(entryPtr: usize, level: i32): u64 {
  const tag = tagOf(entryPtr);
  if (tag == LT) return 1;
  if (tag >= UNIFORM) return uniformTables(level, leafLevelOf(entryPtr));
  if (tag != TABLE) return 0;
  let tables: u64 = 1;
  const first = childPtr(entryPtr, 0);
  for (let at: usize = 0; at < 8192; at += ENTRY_BYTES) {
    const child = first + at;
    const childTag = load<u32>(child) & 7;
    if (childTag == LT) tables++;
    else if (childTag > LT || childTag == TABLE) tables += tablesBelow(child, level - 1);
  }
  return tables;
}

/** Frees everything below an entry and leaves it EMPTY. */
export function freeSubtree(entryPtr: usize, level: i32): void {
  const tag = tagOf(entryPtr);
  if (tag == LT || tag == CHUNKS) {
    releasePlanes(entryPtr);
  } else if (tag == TABLE) {
    const first = childPtr(entryPtr, 0);
    for (let at: usize = 0; at < 8192; at += ENTRY_BYTES) {
      const childTag = load<u32>(first + at) & 7;
      if (childTag == LT || childTag == TABLE || childTag == CHUNKS) freeSubtree(first + at, level - 1);
    }
    releaseUpper(load<u32>(entryPtr, 4));
  }
  setEmpty(entryPtr);
}

// --- Trees: reading --------------------------------------------------------------------------------------------------

/** What treeAt() found: the flags, the tag and level of the entry that answers, and the end of what it says alike. */
export let atFlags: u32 = 0;
export let atTag: u32 = 0;
export let atLevel: i32 = 0;
export let atEnd: u64 = 0;
/** The stored entry that answered; of a UNIFORM answer or one of CHUNKS, the subtree's. */
export let atEntry: usize = 0;

/**
 * Reads the tree at `key`. atLevel is the level of the leaf or absent entry that a walk by real tables would end at;
 * atEnd the end of the stored run of alike entries from there.
 */
export function treeAt(entryPtr: usize, level: i32, key: u64): void {
  while (tagOf(entryPtr) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  atEntry = entryPtr;
  const tag = tagOf(entryPtr);
  atTag = tag;
  const base = key & ~(pagesOf(level) - 1);
  if (tag == LT) {
    const index = <i32>(key & 511);
    atFlags = ltFlags(entryPtr, index);
    atLevel = 1;
    atEnd = base + <u64>ltRunEnd(entryPtr, index, 512);
    return;
  }
  if (tag == CHUNKS) {
    const chunk = indexAt(key, 2);
    atFlags = chunkFlags(entryPtr, chunk);
    atLevel = 1;
    atEnd = base + ((<u64>chunkRunEnd(entryPtr, chunk)) << 9);
    return;
  }
  atEnd = base + pagesOf(level);
  atFlags = flagsOf(entryPtr);
  if ((atFlags & 1) == 0) atFlags = 0;
  atLevel = tag == UNIFORM ? leafLevelOf(entryPtr) : level;
}

/** As treeAt(), without atEnd, which costs more than the rest. */
export function treeLook(entryPtr: usize, level: i32, key: u64): void {
  let desc = load<u32>(entryPtr);
  while ((desc & 7) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
    desc = load<u32>(entryPtr);
  }
  const tag = desc & 7;
  atEntry = entryPtr;
  atTag = tag;
  if (tag == LT) {
    atFlags = ltFlags(entryPtr, <i32>(key & 511));
    atLevel = 1;
    return;
  }
  const flags = tag == CHUNKS ? chunkFlags(entryPtr, indexAt(key, 2)) : (desc >> 8) & 255;
  atFlags = flags & 1 ? flags : 0;
  atLevel = tag >= UNIFORM ? <i32>((desc >> 3) & 15) : level;
}

// Path, 24 bytes: the entry at which the last treeLookNear() of the path began, for the 512 keys around `key` << 9 in
// `tree`. The block that holds it stays where it is until an upper table is freed.
@unmanaged
class Path {
  tree: u32;
  entry: u32;
  key: u64;
  level: i32;
  pad: u32;
}
if (offsetof<Path>() != 24) ERROR('Path is no longer 24 bytes');

function isNear(path: Path, entryPtr: usize, key: u64): bool {
  return path.tree == <u32>entryPtr && path.key == key >> 9 && tagOf(path.entry) != TABLE;
}
function walkAnew(path: Path, entryPtr: usize, level: i32, key: u64): usize {
  path.tree = <u32>entryPtr;
  path.key = key >> 9;
  while (tagOf(entryPtr) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  path.entry = <u32>entryPtr;
  path.level = level;
  return entryPtr;
}
/** The stored entry that answers for `key`; for one key after the other: `pathPtr` says what answered for the last. */
export function treeEntryNear(pathPtr: usize, entryPtr: usize, level: i32, key: u64): usize {
  const path = changetype<Path>(pathPtr);
  return isNear(path, entryPtr, key) ? <usize>path.entry : walkAnew(path, entryPtr, level, key);
}
/** As treeLook(), by treeEntryNear(). */
export function treeLookNear(pathPtr: usize, entryPtr: usize, level: i32, key: u64): void {
  const path = changetype<Path>(pathPtr);
  if (!isNear(path, entryPtr, key)) walkAnew(path, entryPtr, level, key);
  treeLook(path.entry, path.level, key);
}

/** Frees an upper table: what began in it begins at the root again. */
function releaseUpper(block: u32): void {
  changetype<Path>(GUEST_PATH).tree = 0;
  changetype<Path>(HOST_PATH).tree = 0;
  release(CLASS_UPPER, block);
}

/** The flags of `key`: 0 if absent. */
export function treeFlags(entryPtr: usize, level: i32, key: u64): u32 {
  while (tagOf(entryPtr) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  return flagsIn(entryPtr, key);
}
/** The flags of `key` by the stored entry that answers for it: 0 if absent. */
export function flagsIn(entryPtr: usize, key: u64): u32 {
  const tag = tagOf(entryPtr);
  if (tag == LT) return ltFlags(entryPtr, <i32>(key & 511));
  if (tag == CHUNKS) return chunkFlags(entryPtr, indexAt(key, 2));
  const flags = flagsOf(entryPtr);
  return flags & 1 ? flags : 0;
}

/** The table of level-3 entries for `key`'s 512 GiB: its first entry; 0 if none is stored. */
export function levelThreeTable(entryPtr: usize, level: i32, key: u64): usize {
  while (tagOf(entryPtr) == TABLE) {
    if (level == 4) return childPtr(entryPtr, 0);
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  return 0;
}

/** The leaf table that holds `key`; 0 if none is stored. */
export function leafTableAt(entryPtr: usize, level: i32, key: u64): usize {
  while (tagOf(entryPtr) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  return tagOf(entryPtr) == LT ? entryPtr : 0;
}

/**
 * Makes keys [from, to) of what zapEntryAt() found absent. Returns how many leaves there were. Requires: reserve() for a
 * boundary path.
 */
export function zapEntryClear(entryPtr: usize, key: u64, from: i32, to: i32): u32 {
  if (tagOf(entryPtr) == LT) {
    const isInWord = from >> 6 == (to - 1) >> 6;
    return isInWord ? ltClearInWord(entryPtr, from, to) : ltClear(entryPtr, from, to);
  }
  if (zapEntryLevel(entryPtr) == 2) {
    const leafs = tagOf(entryPtr);
    setEmpty(entryPtr);
    return leafs;
  }
  if (!takesChunks(entryPtr)) return 0;
  const chunk = <i32>indexAt(key, 2);
  return chunksClear(entryPtr, chunk, chunk + 1) << 9;
}

/** The level at which a walk ends in what zapEntryAt() found: 2 at a leaf or nothing, else 1. */
export function zapEntryLevel(entryPtr: usize): i32 {
  return tagOf(entryPtr) <= LEAF ? 2 : 1;
}

/** The flags of `key` in what zapEntryAt() found for it; 0 if absent. */
export function zapEntryFlags(entryPtr: usize, key: u64): u32 {
  const tag = tagOf(entryPtr);
  if (tag == LT) return ltFlags(entryPtr, <i32>(key & 511));
  if (tag == CHUNKS) return chunkFlags(entryPtr, indexAt(key, 2));
  return flagsOf(entryPtr) & 1 ? flagsOf(entryPtr) : 0;
}

/**
 * Where `key`'s presence can be changed, given the level-3 entries of its 512 GiB: the leaf table that holds it or, if all
 * 512 keys around it are meant, a level-2 entry with a leaf or nothing, or a GiB of leaf tables that are all alike, or full
 * or empty; 0 if there is none of these.
 */
export function zapEntryAt(levelThree: usize, key: u64, isWhole: bool): usize {
  const upper = levelThree + ((<usize>indexAt(key, 3)) << 4);
  const desc = load<u32>(upper);
  if ((desc & 7) != TABLE) {
    return isWhole && ((desc & 127) == UNIFORM_OF_4K || (desc & 127) == CHUNKS_OF_4K) ? upper : 0;
  }
  const table = childPtr(upper, indexAt(key, 2));
  const tag = tagOf(table);
  return tag == LT || (isWhole && tag <= LEAF) ? table : 0;
}

/** What zapEntryTouch() read: so that no optimiser leaves it out. */
let touched: u32 = 0;

/**
 * Reads the words of `key`'s presence and A in a leaf table, if they are stored. Done for many keys before the first is
 * changed, their cache misses are waited for together.
 */
export function zapEntryTouch(entryPtr: usize, key: u64): void {
  if (((load<u32>(entryPtr) >> 24) & 15) == 0) return;
  touched ^= load<u32>(wordPtr(entryPtr, 0, <i32>((<u32>key & 511) >> 6)));
}

/** Writes masks of the present keys of [key, key + 512) to `masks`. */
export function treeMasks(entryPtr: usize, level: i32, key: u64, masks: usize): void {
  const table = leafTableAt(entryPtr, level, key);
  const alike: u64 = table == 0 && treeFlags(entryPtr, level, key) != 0 ? ~(<u64>0) : 0;
  for (let word = 0; word < 8; word++) {
    store<u64>(masks + ((<usize>word) << 3), table != 0 ? valueWord(table, 0, word) : alike);
  }
}

/** End of the run of keys from `key`, below `limit`, that have the same flags, whatever stores them. */
export function treeRunEnd(entryPtr: usize, level: i32, key: u64, limit: u64): u64 {
  treeAt(entryPtr, level, key);
  const flags = atFlags;
  while (atEnd < limit) {
    const end = atEnd;
    treeAt(entryPtr, level, end);
    if (atFlags != flags) return end;
  }
  return limit;
}

/** How many keys of [start, end) are present with all of `need`. */
export function treeCount(entryPtr: usize, level: i32, start: u64, end: u64, need: u32): u64 {
  const tag = tagOf(entryPtr);
  if (tag == EMPTY || start >= end) return 0;
  if (tag == LT) return <u64>ltCount(entryPtr, <i32>(start & 511), <i32>((end - 1) & 511) + 1, need);
  if (tag != TABLE) {
    if ((flagsOf(entryPtr) & need) != need) return 0;
    return tag == CHUNKS ? chunksCount(entryPtr, start, end) : end - start;
  }
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let total: u64 = 0;
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    total += treeCount(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, need);
    at = next;
  }
  return total;
}

/**
 * Whether every key of [start, end) is present (`present`), or none is. Stops at the first that differs. Requires: the
 * tree is written by treeSet() alone with one value of flags, so that tables of alike entries have been folded.
 */
export function treeHolds(entryPtr: usize, level: i32, start: u64, end: u64, present: bool): bool {
  while (tagOf(entryPtr) == TABLE) {
    // A table that is still there is not alike.
    if (end - start == pagesOf(level)) return false;
    if ((start ^ (end - 1)) >> (9 * (level - 2)) != 0) break;
    level--;
    entryPtr = childPtr(entryPtr, indexAt(start, level));
  }
  const tag = tagOf(entryPtr);
  if (tag == LT) {
    const from = <i32>(start & 511);
    const to = <i32>((end - 1) & 511) + 1;
    if (to - from == 1) return ((ltFlags(entryPtr, from) & 1) != 0) == present;
    return ltCount(entryPtr, from, to, 1) == (present ? <u32>(to - from) : 0);
  }
  if (tag != TABLE) return ((flagsOf(entryPtr) & 1) != 0) == present;
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let child = childPtr(entryPtr, indexAt(start, childLevel));
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    if (!treeHolds(child, childLevel, at, next, present)) return false;
    at = next;
    child += ENTRY_BYTES;
  }
  return true;
}

// --- Trees: writing --------------------------------------------------------------------------------------------------

/** Tables linked (less those freed) by the tree functions since it was last reset. */
export let linked: i64 = 0;
export function resetLinked(): void {
  linked = 0;
}

/** Makes an entry of `level` above 2 a TABLE: links one, or expands what stands for one. */
export function ensureTable(entryPtr: usize, level: i32): void {
  const tag = tagOf(entryPtr);
  if (tag >= UNIFORM) {
    expand(entryPtr, level);
  } else if (tag == EMPTY) {
    linkTable(entryPtr);
    linked++;
  } else {
    assert(tag == TABLE, 'a huge leaf must be split by its owner first');
  }
}

/**
 * Sets keys [start, end) to leaves of `leafLevel` with `flags`, linking tables down to them. With flags 0: keys become
 * absent, tables linked for them alone are freed (a value tree has no tables to keep). The range is aligned to the leaf
 * level. Requires: reserve() for two boundary paths.
 */
export function treeSet(entryPtr: usize, level: i32, start: u64, end: u64, leafLevel: i32, flags: u32): void {
  const base = start & ~(pagesOf(level) - 1);
  const whole = start == base && end == base + pagesOf(level);
  const tag = tagOf(entryPtr);
  if ((flags & 1) == 0 && tag == EMPTY) return;
  if (whole) {
    if (tag != EMPTY) {
      linked -= tablesBelow(entryPtr, level);
      freeSubtree(entryPtr, level);
    }
    if ((flags & 1) == 0) return;
    if (leafLevel == level) {
      setLeaf(entryPtr, level, flags);
    } else {
      setUniform(entryPtr, level, leafLevel, flags);
      linked += uniformTables(level, leafLevel);
    }
    return;
  }
  if (level == 2) {
    if (tag == EMPTY) {
      setUniform(entryPtr, 2, 1, 0);
      linked++;
    }
    const from = <i32>(start & 511);
    const to = <i32>((end - 1) & 511) + 1;
    if (flags & 1) {
      ltSet(entryPtr, from, to, flags);
    } else {
      ltClear(entryPtr, from, to);
      if (presentCount(entryPtr) == 0) {
        setEmpty(entryPtr);
        linked--;
      }
    }
    return;
  }
  ensureTable(entryPtr, level);
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    treeSet(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, leafLevel, flags);
    at = next;
  }
  if (!mayFold(entryPtr, indexAt(start, childLevel))) return;
  fold(entryPtr, level);
  if ((flags & 1) == 0 && tagOf(entryPtr) == UNIFORM && (flagsOf(entryPtr) & 1) == 0) {
    linked -= tablesBelow(entryPtr, level);
    setEmpty(entryPtr);
  }
}

/**
 * Makes the keys of [key, key + 512) that `masks` choose absent. Requires: some of them are present, and some others are;
 * reserve() for a boundary path.
 */
export function treeClearMasked(entryPtr: usize, level: i32, key: u64, masks: usize): void {
  while (level > 2) {
    ensureTable(entryPtr, level);
    level--;
    entryPtr = childPtr(entryPtr, indexAt(key, level));
  }
  ltClearMasked(entryPtr, masks);
}

/**
 * Clears `clear` and sets `set` in the present keys of [start, end) that have all of `need`. Returns how many.
 * Requires: reserve() for two boundary paths, and for the leaf tables between where `need` leaves a choice.
 */
export function treeModify(entryPtr: usize, level: i32, start: u64, end: u64, need: u32, clear: u32, set: u32): u64 {
  const tag = tagOf(entryPtr);
  if (tag == EMPTY) return 0;
  if (tag == LT) {
    return <u64>ltModify(entryPtr, <i32>(start & 511), <i32>((end - 1) & 511) + 1, need, clear, set);
  }
  if (tag != TABLE) {
    const flags = flagsOf(entryPtr);
    if ((flags & need) != need) return 0;
    const changed = (flags & ~clear) | set;
    if (tag == CHUNKS && (changed == flags || end - start == pagesOf(3))) {
      chunksModify(entryPtr, changed);
      return chunksCount(entryPtr, start, end);
    }
    if (changed == flags) return end - start;
    if (tag == LEAF || end - start == pagesOf(level)) {
      store<u32>(entryPtr, (load<u32>(entryPtr) & ~0xff00) | (changed << 8));
      return end - start;
    }
    expand(entryPtr, level);
  }
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let total: u64 = 0;
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    total += treeModify(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, need, clear, set);
    at = next;
  }
  fold(entryPtr, level);
  return total;
}
