// The kvm_gfn_range handlers as their own callers see them: one range, many of one length, kvm_zap_gfn_range().
// What a range does is mmu.ts's.

import { LEAF_GROWTH_BLOCKS, reserve, reserveAmply } from './blocks';
import { gfnOf, isGfn, spteAt } from './check';
import { chunkFlags } from './chunks';
import { C_LEAFS_AGED, C_ZAPPED_DIRECT_4K, counter, ctl, FORM_GMEM_V13, PROFILE_6_12, PROFILE_6_16 } from './control';
import { CHUNKS, indexAt, LT, TABLE, tagOf } from './entry';
import { IO_BASE } from './layout';
import { ltFlags } from './leaf_table';
import { lossRequest, overZapped, PRODUCER_DIRECT } from './losses';
import { endGfnOf, Memslot, memslotAt } from './memslots';
import { ageGfn, setSpteGfn, testAgeGfn, unmapGfnRange, zapGfnRange } from './mmu';
import { flagsIn, zapEntryAt, zapEntryClear, zapEntryLevel, zapEntryTouch } from './page_table';
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
  const looksPtr = IO_BASE + ((<usize>ranges) << 3);
  // Behind questions and answers.
  const foundPtr = IO_BASE + ((<usize>ranges) << 4);
  const lookRoot = findRoot(looks == 2 ? ROOT_MIRROR : ROOT_DIRECT, asId);
  const lookBits: u64 = lookRoot === null ? 0 : keyBitsOf(lookRoot);
  const plainRoot = plainRootOf(call, asId, pages, arg, selector);
  const limit = plainRoot === null ? 0 : maxGfnExclusive(keyBitsOf(plainRoot));
  // Zapped in place: walks and leaves, and those of them that ended at level 2.
  let walks: u64 = 0;
  let leafs: u64 = 0;
  let walks2: u64 = 0;
  let leafs2: u64 = 0;
  let isFound = false;
  let isAmple = isRoomFor(ranges);
  // Of the last range, if it was zapped in place: what a call for it alone would leave in Control.
  let lastEntry: usize = 0;
  let lastStart: u64 = 0;
  let lastHits: u64 = 0;
  let flush = 0;
  let done: u32 = 0;
  for (; done < ranges; done++) {
    const ptr = IO_BASE + ((<usize>done) << 3);
    const start = gfnOf(load<f64>(ptr));
    const last = start + pages - 1;
    const mayFold = mayFoldIn(start, last + 1);
    let entry: usize = 0;
    if (plainRoot !== null) {
      const place = done & (GROUP - 1);
      const found = foundPtr + ((<usize>place) << 2);
      if (place == 0 || !isFound) findEntries(plainRoot, ptr, found, min(ranges - done, GROUP - place), pages == 512);
      isFound = true;
      if ((start ^ last) >> 9 == 0 && last < limit && !mayFold) {
        entry = <usize>load<u32>(found);
        // A range before it may have linked its table.
        if (entry == 0 || tagOf(entry) == TABLE) {
          findEntries(plainRoot, ptr, found, 1, pages == 512);
          entry = <usize>load<u32>(found);
        }
      }
    }
    if (entry != 0) {
      if (!isAmple && !reserve(64, 24)) {
        ctl.result1 = STATUS_CAPACITY;
        break;
      }
      const isHuge = zapEntryLevel(entry) == 2;
      const zapped = zapEntryClear(entry, start, <i32>(start & 511), <i32>(last & 511) + 1);
      walks++;
      leafs += <u64>zapped;
      if (isHuge) {
        walks2++;
        leafs2 += <u64>zapped;
        if (zapped != 0 && pages != 512) {
          lossRequest(start, last + 1, arg, selector);
          zappedBeyond(start, last + 1);
        }
      }
      lastHits = <u64>zapped;
      lastStart = start;
      lastEntry = entry;
      store<f64>(ptr, <f64>zapped);
    } else {
      lastEntry = 0;
      const before = changedLeafs(call);
      const result = doRange(call, slot, start, last + 1, arg, selector);
      if (result < 0) {
        ctl.result1 = <f64>result;
        break;
      }
      flush |= result;
      store<f64>(ptr, <f64>(changedLeafs(call) - before));
      // A fold frees the table that entries found stand in; tables that were linked move none.
      if (mayFold) isFound = false;
      isAmple = isRoomFor(ranges - done);
    }
    if (looks == 0) continue;
    const key = gfnOf(load<f64>(looksPtr + ((<usize>done) << 3))) | lookBits;
    let code: u32 = 0;
    if (entry != 0 && lookRoot === plainRoot && (key ^ (start | lookBits)) >> 9 == 0) {
      code = spteInEntry(lookRoot!, entry, key);
    } else if (lookRoot !== null) {
      code = spteAt(lookRoot, key);
    }
    store<u32>(looksPtr + ((<usize>done) << 2), code);
  }
  if (plainRoot !== null) {
    tdpMmuZappedIn(plainRoot, walks, (walks - walks2) * pages, leafs - leafs2, leafs2, leafs2 * (512 - pages));
  }
  if (lastEntry != 0) {
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

// Ranges within a leaf table or a 2M leaf, of a VM where nothing else needs to know of each, are found by groups and zapped in
// place: the same changes and counts as one call each. Whole ones also where leaf tables are not stored one by one.

/** Ranges that are looked up together. A power of two. */
const GROUP: u32 = 64;

/** Whether `ranges` zaps in place, which may each give a table its planes, can all be reserved for without asking. */
function isRoomFor(ranges: u32): bool {
  return reserveAmply(64, (<u64>ranges + 24) * LEAF_GROWTH_BLOCKS);
}

function plainRootOf(call: u32, asId: u32, pages: u64, arg: u64, selector: u32): Root | null {
  if (call != CALL_UNMAP || pages > 512) return null;
  ctl.producer = PRODUCER_DIRECT;
  return tdpMmuPlainRoot(vendorRootsOfRange(selector, arg), asId, (selector & MAY_BLOCK) != 0);
}

/** A direct 2M leaf went whole, for a part of it. */
function zappedBeyond(start: u64, end: u64): void {
  const base = start & ~511;
  overZapped(0, base, start);
  overZapped(0, end, base + 512);
}

/** Writes the entries that ranges are zapped in (zapEntryAt()), or 0, as u32 at `foundPtr`. */
function findEntries(root: Root, startsPtr: usize, foundPtr: usize, ranges: u32, isWhole: bool): void {
  const bits = keyBitsOf(root);
  let near: u64 = ~(<u64>0);
  let levelThree: usize = 0;
  for (let index: u32 = 0; index < ranges; index++) {
    const gfn = gfnOf(load<f64>(startsPtr + ((<usize>index) << 3)));
    if (gfn >> 27 != near) {
      near = gfn >> 27;
      levelThree = tdpMmuLevelThree(root, gfn);
    }
    const entry: usize = levelThree == 0 ? 0 : zapEntryAt(levelThree, gfn | bits, isWhole);
    store<u32>(foundPtr + ((<usize>index) << 2), <u32>entry);
  }
  for (let index: u32 = 0; index < ranges; index++) {
    const table = <usize>load<u32>(foundPtr + ((<usize>index) << 2));
    if (table != 0) zapEntryTouch(table, gfnOf(load<f64>(startsPtr + ((<usize>index) << 3))), isWhole);
  }
}

/** What the walk for `key` ends at, in `entry` of zapEntryAt(); as spteAt(). */
function spteInEntry(root: Root, entry: usize, key: u64): u32 {
  // As flagsIn(), whose call the usual cases are spared.
  const tag = tagOf(entry);
  let flags: u32;
  if (tag == LT) flags = ltFlags(entry, <i32>(key & 511));
  else if (tag == CHUNKS) flags = chunkFlags(entry, indexAt(key, 2));
  else flags = flagsIn(entry, key);
  return flags == 0 && ctl.sideCount != 0
    ? spteAt(root, key)
    : codeOfFlags(flags) | ((<u32>zapEntryLevel(entry)) << 16);
}

/**
 * Whether vmGfnRanges() may be called so. Returns how many doubles it takes, or the place of the first that will not do: a
 * range that is not within the slot, or no gfn. -EINVAL: no such slot, no pages, a selector that the form refuses.
 */
export function vmCheckGfnRanges(asId: u32, slotId: u32, ranges: u32, npages: f64, selector: u32, looks: u32): i32 {
  if (!takesRanges(asId, slotId, selector) || npages < 1) return -EINVAL;
  const slot = memslotAt(asId, slotId);
  const first = <f64>slot.baseGfn;
  const last = <f64>endGfnOf(slot) - npages;
  let at: u32 = 0;
  for (; at < ranges; at++) {
    const start = load<f64>(IO_BASE + ((<usize>at) << 3));
    if (!(start >= first && start <= last && isGfn(start))) return <i32>at;
  }
  const doubles = looks == 0 ? ranges : 2 * ranges;
  while (at < doubles && isGfn(load<f64>(IO_BASE + ((<usize>at) << 3)))) at++;
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
