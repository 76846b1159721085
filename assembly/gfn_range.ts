// The kvm_gfn_range handlers as their own callers see them: one range, many of one length, kvm_zap_gfn_range().
// What a range does is mmu.ts's.

import { LEAF_GROWTH_BLOCKS, reserve, reserveAmply } from './blocks';
import { GFN_LAST, gfnOf, isGfnWithin, spteAt } from './check';
import { chunkFlags } from './chunks';
import { C_LEAFS_AGED, C_ZAPPED_DIRECT_4K, counter, ctl, FORM_GMEM_V13, PROFILE_6_12, PROFILE_6_16 } from './control';
import { CHUNKS, indexAt, LT, TABLE, tagOf } from './entry';
import { IO_BASE } from './layout';
import { ltClear, ltClearInWord, ltFlags } from './leaf_table';
import { lossRequest, overZapped, PRODUCER_DIRECT } from './losses';
import { endGfnOf, Memslot, memslotAt } from './memslots';
import { ageGfn, setSpteGfn, testAgeGfn, unmapGfnRange, zapGfnRange } from './mmu';
import { flagsIn, zapEntryAt, zapEntryChunk, zapEntryLeaf, zapEntryLevel, zapEntryTouch } from './page_table';
import { EINVAL, EIO, EOPNOTSUPP, STATUS_CAPACITY } from './status';
import {
  findRoot,
  keyBitsOf,
  maxGfnExclusive,
  mayFoldIn,
  ROOT_DIRECT,
  ROOT_MIRROR,
  Root,
  tdpMmuLevelThree,
  tdpMmuPlainRoot,
  tdpMmuZappedIn,
} from './tdp_mmu';
import { flushRemoteTlbs } from './tlb';
import { codeOfFlags } from './trace';
import { MAY_BLOCK, ONLY_PRIVATE, ONLY_SHARED, vendorRootsOfRange } from './vendor';

export const CALL_UNMAP: u32 = 0;
export const CALL_AGE: u32 = 1;
export const CALL_TEST_AGE: u32 = 2;
export const CALL_SET_SPTE: u32 = 3;

/**
 * Calls one kvm_gfn_range handler. Returns its boolean, or -EINVAL: no such slot, a range that is empty or not within
 * the slot, a pair of bools that the form refuses, set_spte of more than one gfn; -EOPNOTSUPP: set_spte on a kernel
 * without it.
 */
export function vmGfnRange(
  call: u32,
  asId: u32,
  slotId: u32,
  startGfn: f64,
  endGfn: f64,
  arg: u64,
  selector: u32,
): i32 {
  if (!takesRanges(asId, slotId, selector)) return -EINVAL;
  const slot = memslotAt(asId, slotId);
  const start = <u64>startGfn;
  const end = <u64>endGfn;
  if (start >= end || start < slot.baseGfn || end > endGfnOf(slot)) return -EINVAL;
  if (call == CALL_SET_SPTE) {
    if (ctl.profile == PROFILE_6_12 || ctl.profile == PROFILE_6_16) return -EOPNOTSUPP;
    if (end != start + 1) return -EINVAL;
  }
  return doRange(call, slot, start, end, arg, selector);
}

/** Whether there is such a slot, and the filter form knows the selector. */
function takesRanges(asId: u32, slotId: u32, selector: u32): bool {
  if (asId >= ctl.asCount || slotId > 32766 || memslotAt(asId, slotId).used == 0) return false;
  const both = ONLY_PRIVATE | ONLY_SHARED;
  return ctl.filterForm != FORM_GMEM_V13 || (selector & both) != both;
}

function doRange(call: u32, slot: Memslot, start: u64, end: u64, arg: u64, selector: u32): i32 {
  if (!reserve(64, 24)) return STATUS_CAPACITY;
  let result: bool;
  ctl.producer = PRODUCER_DIRECT;
  if (call == CALL_UNMAP) result = unmapGfnRange(slot, start, end, arg, selector);
  else if (call == CALL_AGE) result = ageGfn(slot, start, end, selector);
  else if (call == CALL_TEST_AGE) result = testAgeGfn(slot, start, end, selector);
  else result = setSpteGfn(slot, start, end, arg, selector);
  // The flush that a true asks for is the caller's from here on.
  if (result) ctl.flushOwed = 0;
  if (ctl.splitFailed != 0) return -EIO;
  return result ? 1 : 0;
}

/** Leaves that calls of CALL_UNMAP or CALL_AGE changed so far. */
function changedLeafs(call: u32): u64 {
  if (call == CALL_AGE) return counter(C_LEAFS_AGED);
  let leafs: u64 = 0;
  for (let index = C_ZAPPED_DIRECT_4K; index < C_ZAPPED_DIRECT_4K + 6; index++) leafs += counter(index);
  return leafs;
}

/**
 * `ranges` calls of CALL_UNMAP or CALL_AGE, one after the other, each for `npages` gfns. IO_BASE holds `ranges` doubles: the
 * first gfns. With `looks` (0: none, 1: at the direct root, 2: at the mirror root) as many more follow: gfns to look at, each
 * right after its call. Answers take the places of the questions: the leaves changed (f64); packed to u32, inspectSpte().
 * Requires: vmCheckGfnRanges(). Returns how many were done; result0 is 1 if any asked for a flush, result1 the -errno of the
 * one that was not done.
 */
export function vmGfnRanges(
  call: u32,
  asId: u32,
  slotId: u32,
  ranges: u32,
  npages: f64,
  arg: u64,
  selector: u32,
  looks: u32,
): i32 {
  const slot = memslotAt(asId, slotId);
  const pages = <u64>npages;
  looksAt = looks == 0 ? 0 : (<usize>ranges) << 3;
  lookRoot = findRoot(looks == 2 ? ROOT_MIRROR : ROOT_DIRECT, asId);
  const plainRoot = plainRootOf(call, slot, pages, arg, selector);
  lookElsewhere = lookRoot === plainRoot ? 0 : 1;
  // Behind questions and answers.
  const groupPtr = IO_BASE + ((<usize>ranges) << 4);
  walks = 0;
  leafs = 0;
  walks2 = 0;
  leafs2 = 0;
  let isFound = false;
  let isAmple = isRoomFor(ranges);
  let isInPlace = false;
  let flush = 0;
  let done: u32 = 0;
  while (done < ranges) {
    const ptr = IO_BASE + ((<usize>done) << 3);
    if (plainRoot === null || !isAmple) {
      isFound = false;
    } else {
      const place = done & (GROUP - 1);
      const foundPtr = groupPtr + ((<usize>place) << 2);
      const left = min(ranges - done, GROUP - place);
      if (place == 0 || !isFound) findEntries(plainRoot, ptr, foundPtr, left, <u32>pages);
      isFound = true;
      ctl.producer = PRODUCER_DIRECT;
      const zapped = zapFound(ptr, foundPtr, left, <i32>pages, arg, selector);
      isInPlace = zapped != 0;
      done += zapped;
      if (isInPlace) continue;
    }
    const start = gfnOf(load<f64>(ptr));
    const before = changedLeafs(call);
    const result = doRange(call, slot, start, start + pages, arg, selector);
    isInPlace = false;
    if (result < 0) {
      ctl.result1 = <f64>result;
      break;
    }
    flush |= result;
    store<f64>(ptr, <f64>(changedLeafs(call) - before));
    if (looks != 0) look(ptr);
    // A fold frees the table that entries found stand in; tables that were linked move none, and are found with the next group.
    if (mayFoldIn(start, start + pages)) isFound = false;
    done++;
    isAmple = isRoomFor(ranges - done);
  }
  if (plainRoot !== null) {
    tdpMmuZappedIn(plainRoot, walks, (walks - walks2) * pages, leafs - leafs2, leafs2, leafs2 * (512 - pages));
  }
  if (isInPlace) {
    // What a call for the last of them alone would leave in Control.
    lossRequest(lastStart, lastStart + pages, arg, selector);
    ctl.walkHits = lastHits;
  }
  if (leafs != 0) {
    // The flush that they ask for is the caller's.
    ctl.flushOwed = 0;
    flush = 1;
  }
  ctl.result0 = <f64>flush;
  return <i32>done;
}

/** Bytes from the ranges to the gfns to look at; 0 if none are. */
let looksAt: usize = 0;
/** The root to look at; null if there is none. */
let lookRoot: Root | null = null;
/** Not 0 if that is not where ranges are zapped in place. */
let lookElsewhere: u64 = 0;

/** Answers what the walk to the gfn that is looked at after the range at `ptr` ends at: `code`, as inspectSpte(). */
function answer(ptr: usize, code: u32): void {
  // An answer takes half of a question's bytes: at IO_BASE + looksAt + (ptr - IO_BASE) / 2.
  store<u32>(looksAt + (ptr >> 1), code, IO_BASE >> 1);
}
/** Looks after the range at `ptr`. */
function look(ptr: usize): void {
  const root = lookRoot;
  answer(ptr, root === null ? 0 : spteAt(root, gfnOf(load<f64>(ptr + looksAt)) | keyBitsOf(root)));
}

// Ranges within a leaf table or a 2M leaf, of a VM where nothing else needs to know of each, are found by groups and zapped in
// place: the same changes and counts as one call each. Whole ones also where leaf tables are not stored one by one.

/** Ranges that are looked up together. A power of two. */
const GROUP: u32 = 64;

/** Of the ranges zapped in place: walks and leaves, and those of them that ended at level 2. */
let walks: u64 = 0;
let leafs: u64 = 0;
let walks2: u64 = 0;
let leafs2: u64 = 0;
/** Of the last of them, where the last call of zapFound() zapped any: its first gfn, and how many leaves it had. */
let lastStart: u64 = 0;
let lastHits: u64 = 0;

/** Whether `ranges` zaps in place, which may each give a table its planes, can all be reserved for without asking. */
function isRoomFor(ranges: u32): bool {
  return reserveAmply(64, (<u64>ranges + 24) * LEAF_GROWTH_BLOCKS);
}

function plainRootOf(call: u32, slot: Memslot, pages: u64, arg: u64, selector: u32): Root | null {
  if (call != CALL_UNMAP || pages > 512) return null;
  const root = tdpMmuPlainRoot(vendorRootsOfRange(selector, arg), slot.asId, (selector & MAY_BLOCK) != 0);
  return root !== null && endGfnOf(slot) <= maxGfnExclusive(keyBitsOf(root)) ? root : null;
}

/** A direct 2M leaf went whole, for a part of it. */
function zappedBeyond(start: u64, end: u64): void {
  const base = start & ~511;
  overZapped(0, base, start);
  overZapped(0, end, base + 512);
}

/**
 * Writes the entries that the `ranges` ranges at `startsPtr` are zapped in (zapEntryAt()) as u32 at `foundPtr`: 0 for one that
 * meets two leaf tables or may fold some, too.
 */
function findEntries(root: Root, startsPtr: usize, foundPtr: usize, ranges: u32, pages: u32): void {
  const isWhole = pages == 512;
  const bits = keyBitsOf(root);
  let near: u64 = ~(<u64>0);
  let levelThree: usize = 0;
  for (let index: u32 = 0; index < ranges; index++) {
    const gfn = gfnOf(load<f64>(startsPtr + ((<usize>index) << 3)));
    if (gfn >> 27 != near) {
      near = gfn >> 27;
      levelThree = tdpMmuLevelThree(root, gfn);
    }
    let entry: usize = 0;
    const isIn = (<u32>gfn & 511) + pages <= 512 && !mayFoldIn(gfn, gfn + <u64>pages);
    if (isIn && levelThree != 0) entry = zapEntryAt(levelThree, gfn | bits, isWhole);
    store<u32>(foundPtr + ((<usize>index) << 2), <u32>entry);
  }
  if (ctl.arenaNext <= CACHED_BLOCKS) return;
  // What goes whole goes with its entry.
  let read: u32 = 0;
  for (let index: u32 = 0; index < ranges; index++) {
    const entry = <usize>load<u32>(foundPtr + ((<usize>index) << 2));
    const gfn = gfnOf(load<f64>(startsPtr + ((<usize>index) << 3)));
    if (entry != 0) read ^= isWhole ? load<u32>(entry) : zapEntryTouch(entry, gfn);
  }
  touched ^= read;
}

/** Of arenas that use no more, a cache nearest but one to the processor holds enough: nothing there takes long to wait for. */
const CACHED_BLOCKS: u32 = (1 << 20) >> 6;
/** What findEntries() read: so that no optimiser leaves it out. */
let touched: u32 = 0;

/**
 * Zaps the ranges at `startsPtr` in the entries that findEntries() left at `foundPtr`, `ranges` at most, up to the first that
 * has none. Returns how many. Requires: isRoomFor() them.
 */
function zapFound(startsPtr: usize, foundPtr: usize, ranges: u32, pages: i32, arg: u64, selector: u32): u32 {
  const looks = looksAt;
  let start: u64 = 0;
  let hits: u64 = 0;
  let hitsOfLast: u32 = 0;
  let index: u32 = 0;
  for (; index < ranges; index++) {
    const entry = <usize>load<u32>(foundPtr + ((<usize>index) << 2));
    if (entry == 0) break;
    const tag = tagOf(entry);
    const ptr = startsPtr + ((<usize>index) << 3);
    start = gfnOf(load<f64>(ptr));
    if (tag == LT) {
      const from = <i32>start & 511;
      const isInWord = (from & 63) + pages <= 64;
      hitsOfLast = isInWord ? ltClearInWord(entry, from, from + pages) : ltClear(entry, from, from + pages);
      if (looks != 0) lookBeside(ptr, entry, start, LT);
    } else {
      if (tag == TABLE) break;
      hitsOfLast = zapOther(entry, start, pages, arg, selector);
      if (looks != 0) lookBeside(ptr, entry, start, tagOf(entry));
    }
    hits += <u64>hitsOfLast;
    store<f64>(ptr, <f64>hitsOfLast);
  }
  walks += <u64>index;
  leafs += hits;
  lastStart = start;
  lastHits = <u64>hitsOfLast;
  return index;
}

/** Zaps a range of zapFound() in what is no leaf table. Returns how many leaves there were. */
function zapOther(entry: usize, start: u64, pages: i32, arg: u64, selector: u32): u32 {
  if (zapEntryLevel(tagOf(entry)) != 2) return zapEntryChunk(entry, start);
  const hits = zapEntryLeaf(entry);
  walks2++;
  leafs2 += <u64>hits;
  if (hits != 0 && pages != 512) {
    lossRequest(start, start + pages, arg, selector);
    zappedBeyond(start, start + pages);
  }
  return hits;
}

/** As look(), after a zap at `start` in `entry`, which has `tag` now and where the walk to the other gfn too may end. */
function lookBeside(ptr: usize, entry: usize, start: u64, tag: u32): void {
  const gfn = gfnOf(load<f64>(ptr + looksAt));
  if ((((gfn ^ start) >> 9) | lookElsewhere) != 0) {
    look(ptr);
    return;
  }
  // As flagsIn(), whose call the usual cases are spared.
  let flags: u32;
  if (tag == LT) flags = ltFlags(entry, <i32>gfn & 511);
  else if (tag == CHUNKS) flags = chunkFlags(entry, indexAt(gfn, 2));
  else flags = flagsIn(entry, gfn);
  if (flags == 0 && ctl.sideCount != 0) look(ptr);
  else answer(ptr, codeOfFlags(flags) | (zapEntryLevel(tag) << 16));
}

/**
 * Whether vmGfnRanges() may be called so. Returns how many doubles it takes, or the place of the first that will not do: a
 * range that is not within the slot, or no gfn. -EINVAL: no such slot, no pages, a selector that the form refuses.
 */
export function vmCheckGfnRanges(asId: u32, slotId: u32, ranges: u32, npages: f64, selector: u32, looks: u32): i32 {
  if (!takesRanges(asId, slotId, selector) || npages < 1) return -EINVAL;
  const slot = memslotAt(asId, slotId);
  const pages = <u64>npages;
  if (pages > slot.npages) return 0;
  const first = slot.baseGfn;
  const more = slot.npages - pages;
  let at: u32 = 0;
  while (at < ranges && isGfnWithin(load<f64>(IO_BASE + ((<usize>at) << 3)), first, more)) at++;
  if (at < ranges) return <i32>at;
  const doubles = looks == 0 ? ranges : 2 * ranges;
  while (at < doubles && isGfnWithin(load<f64>(IO_BASE + ((<usize>at) << 3)), 0, GFN_LAST)) at++;
  return <i32>at;
}

/** kvm_zap_gfn_range(), called directly (mmu.ts). Returns -EINVAL if the range is empty. */
export function vmZapGfnRange(startGfn: f64, endGfn: f64): i32 {
  const start = <u64>startGfn;
  const end = <u64>endGfn;
  if (start >= end) return -EINVAL;
  if (!reserve(64, 24)) return STATUS_CAPACITY;
  zapGfnRange(start, end);
  return 0;
}

/** The caller of vmGfnRange() does the flush that it owes. */
export function vmFlushRemoteTlbs(): i32 {
  flushRemoteTlbs();
  return 0;
}
