// Private or shared, per gfn: zap, store, allow huge pages again.
//
// The attributes stand in trees (attributes.ts), not in an entry per page; the counter attribute_xarray_ops still
// says how many xarray operations KVM spends, two a gfn.
// Mirrors: virt/kvm/kvm_main.c (kvm_vm_ioctl_set_mem_attributes), arch/x86/kvm/mmu/mmu.c (kvm_arch_*_set_memory_attributes)

import { allArePrivate, attributesRunEnd, isPrivateGfn, setAttributes, wantAttributes } from './attributes';
import { reserveWanted, want, wantBlocksOf, wantCuts, wantNothing } from './blocks';
import { C_ATTRIBUTE_XARRAY_OPS, C_LOCK_SECTIONS, count, ctl, FORM_GMEM_IN_PLACE, hasPrivateMem } from './control';
import { pagesOf } from './entry';
import { mmuInvalidateBegin, mmuInvalidateEnd, mmuInvalidateRangeAdd } from './invalidate';
import { PRODUCER_SET_ATTRIBUTES } from './losses';
import {
  BY_GFN,
  endGfnOf,
  firstPlaceByGfn,
  isMixed,
  Memslot,
  MIXED_1G_LEVEL,
  MIXED_2M_LEVEL,
  mixedTree,
  slotAtPlace,
  slotCount,
} from './memslots';
import { reserveAmplyForRanges, unmapGfnRange, wantGfnRange } from './mmu';
import { treeCount, treeSet } from './page_table';
import { PAUSE_ATTRIBUTES_STORED, PAUSE_ATTRIBUTES_ZAPPED, pausePoint } from './pause';
import { EINVAL, EIO, ENOTTY, STATUS_CAPACITY } from './status';
import { flushRemoteTlbs } from './tlb';
import { EV_POST_ATTR, EV_PRE_ATTR, trace2 } from './trace';
import { KVM_MEMORY_ATTRIBUTE_PRIVATE, MAY_BLOCK, selectAttributes, vendorZapsForAttributes } from './vendor';

/** Mirrors: kvm_mem_is_private() */
export function memIsPrivate(gfn: u64): bool {
  return isPrivateGfn(gfn);
}

/** Whether all of [startGfn, endGfn) is private, or none. Mirrors: kvm_range_has_memory_attributes() */
function rangeHasMemoryAttributes(startGfn: u64, endGfn: u64, isPrivate: bool): bool {
  return allArePrivate(startGfn, endGfn, isPrivate);
}

/**
 * KVM_SET_MEMORY_ATTRIBUTES, in bytes. Returns 0 or -EINVAL in the order of the kernel's checks.
 * Mirrors: kvm_vm_ioctl_set_mem_attributes()
 */
export function vmSetMemoryAttributes(address: u64, size: u64, attributes: u64, flags: u64): i32 {
  // The attributes are the file's: the VM has no such ioctl.
  if (ctl.filterForm == FORM_GMEM_IN_PLACE) return -ENOTTY;
  if (flags != 0) return -EINVAL;
  const supported: u64 = hasPrivateMem() ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
  if (attributes & ~supported) return -EINVAL;
  if (size == 0 || address + size < address || address + size == 0) return -EINVAL;
  if ((address & 4095) != 0 || (size & 4095) != 0) return -EINVAL;
  return setMemAttributes(address >> 12, (address + size) >> 12, attributes);
}

/** How many slots, over all address spaces, meet [startGfn, endGfn). */
function slotsMeeting(startGfn: u64, endGfn: u64): u32 {
  let met: u32 = 0;
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    for (let place = firstPlaceByGfn(asId, startGfn); place < slotCount(asId); place++) {
      if (slotAtPlace(asId, BY_GFN, place).baseGfn >= endGfn) break;
      met++;
    }
  }
  return met;
}

/** Mirrors: kvm_vm_set_mem_attributes() */
function setMemAttributes(startGfn: u64, endGfn: u64, attributes: u64): i32 {
  const isPrivate = attributes != 0;
  if (rangeHasMemoryAttributes(startGfn, endGfn, isPrivate)) return 0;
  const met = slotsMeeting(startGfn, endGfn);
  if (!reserveSet(startGfn, endGfn, met)) return STATUS_CAPACITY;
  if (met != 0) {
    count(C_LOCK_SECTIONS, 1);
    preSet(startGfn, endGfn, attributes);
    if (ctl.splitFailed != 0) {
      // The range stays as it is, and says so.
      mmuInvalidateEnd();
      return -EIO;
    }
    pausePoint(PAUSE_ATTRIBUTES_ZAPPED);
  }
  setAttributes(startGfn, endGfn, isPrivate);
  count(C_ATTRIBUTE_XARRAY_OPS, (endGfn - startGfn) * 2);
  if (met != 0) {
    pausePoint(PAUSE_ATTRIBUTES_STORED);
    count(C_LOCK_SECTIONS, 1);
    mmuInvalidateEnd();
    postSet(startGfn, endGfn, attributes);
  }
  return 0;
}

/** Reserves for the attribute tree, and for the page tables and mixed trees of each slot of the `met`. */
function reserveSet(startGfn: u64, endGfn: u64, met: u32): bool {
  if (reserveAmplyForRanges(met + 1)) return true;
  wantNothing();
  wantAttributes(startGfn, endGfn);
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    for (let place = firstPlaceByGfn(asId, startGfn); place < slotCount(asId); place++) {
      const slot = slotAtPlace(asId, BY_GFN, place);
      if (slot.baseGfn >= endGfn) break;
      const from = max(startGfn, slot.baseGfn);
      const to = min(endGfn, endGfnOf(slot));
      wantGfnRange(slot, from, to);
      for (let level = 2; level <= 3; level++) {
        wantMixed(slot, level, from);
        wantMixed(slot, level, to);
      }
    }
  }
  return reserveWanted();
}

/** Adds what tracking needs at an end `gfn` of a range: its region may be mixed, and the run of regions beside it ends. */
export function wantMixed(slot: Memslot, level: i32, gfn: u64): void {
  const shift = <u64>(level == 2 ? 9 : 18);
  const entryLevel = level == 2 ? MIXED_2M_LEVEL : MIXED_1G_LEVEL;
  const region = gfn >> shift;
  wantCuts(mixedTree(slot, level), entryLevel, region, region + 1);
}

/** The first pass: publishes the hull, zaps what the new attributes leave behind, flushes once. */
function preSet(startGfn: u64, endGfn: u64, attributes: u64): void {
  ctl.producer = PRODUCER_SET_ATTRIBUTES;
  mmuInvalidateBegin();
  let flush: bool = false;
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    let place = firstPlaceByGfn(asId, startGfn);
    for (; place < slotCount(asId); place++) {
      const slot = slotAtPlace(asId, BY_GFN, place);
      if (slot.baseGfn >= endGfn) break;
      const from = max(startGfn, slot.baseGfn);
      const to = min(endGfn, endGfnOf(slot));
      mmuInvalidateRangeAdd(from, to);
      flush = preSetMemoryAttributes(slot, from, to, attributes) || flush;
    }
  }
  if (flush) flushRemoteTlbs();
}

function postSet(startGfn: u64, endGfn: u64, attributes: u64): void {
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    for (let place = firstPlaceByGfn(asId, startGfn); place < slotCount(asId); place++) {
      const slot = slotAtPlace(asId, BY_GFN, place);
      if (slot.baseGfn >= endGfn) break;
      const from = max(startGfn, slot.baseGfn);
      const to = min(endGfn, endGfnOf(slot));
      postSetMemoryAttributes(slot, from, to, attributes);
    }
  }
}

/**
 * Adds to the hull the huge regions at the range's ends that must not be mapped huge meanwhile, and zaps the range in
 * the roots that the new attributes mean. Under the RFC an SNP VM zaps nothing here: its vendor waits for guest_memfd.
 * Mirrors: kvm_arch_pre_set_memory_attributes(); the vendor callback of the RFC's v3 (spec 2.5)
 */
function preSetMemoryAttributes(slot: Memslot, startGfn: u64, endGfn: u64, attributes: u64): bool {
  trace2(EV_PRE_ATTR, MAY_BLOCK | (slot.asId << 5), slot.id, startGfn, endGfn, attributes);
  if (ctl.hugepageGuard != 0) guardEnds(slot, startGfn, endGfn, 3);
  if (!vendorZapsForAttributes()) return false;
  return unmapGfnRange(slot, startGfn, endGfn, attributes, selectAttributes(attributes));
}

/**
 * Adds to the hull the huge regions, up to `topLevel`, at the ends of [startGfn, endGfn) that it covers in part and that are
 * not mixed yet.
 */
export function guardEnds(slot: Memslot, startGfn: u64, endGfn: u64, topLevel: i32): void {
  for (let level = 2; level <= topLevel; level++) {
    const pages = pagesOf(level);
    const head = startGfn & ~(pages - 1);
    const tail = (endGfn - 1) & ~(pages - 1);
    if (head != startGfn || head + pages > endGfn) guardRegion(slot, level, head);
    if (tail != head && tail + pages > endGfn) guardRegion(slot, level, tail);
  }
}

function guardRegion(slot: Memslot, level: i32, gfn: u64): void {
  const pages = pagesOf(level);
  if (gfn < slot.baseGfn || gfn + pages > endGfnOf(slot) || isMixed(slot, level, gfn)) return;
  mmuInvalidateRangeAdd(gfn, gfn + pages);
}

function setRegionMixed(slot: Memslot, level: i32, gfn: u64, mixed: bool): void {
  if (isMixed(slot, level, gfn) != mixed) setMixed(slot, level, gfn, gfn + pagesOf(level), mixed);
}
function setMixed(slot: Memslot, level: i32, startGfn: u64, endGfn: u64, mixed: bool): void {
  const shift = <u64>(level == 2 ? 9 : 18);
  const entryLevel = level == 2 ? MIXED_2M_LEVEL : MIXED_1G_LEVEL;
  treeSet(mixedTree(slot, level), entryLevel, startGfn >> shift, endGfn >> shift, 1, mixed ? 1 : 0);
}

/** Whether the region of `level` at `gfn` has one value throughout. Mirrors: hugepage_has_attrs() */
function regionHasAttributes(slot: Memslot, level: i32, gfn: u64, isPrivate: bool): bool {
  const pages = pagesOf(level);
  if (level == 2) return rangeHasMemoryAttributes(gfn, gfn + pages, isPrivate);
  // None of its 2M regions mixed, and each with the value at its first gfn: the same as uniform throughout.
  const mixed = treeCount(mixedTree(slot, 2), MIXED_2M_LEVEL, gfn >> 9, (gfn + pages) >> 9, 1);
  return mixed == 0 && rangeHasMemoryAttributes(gfn, gfn + pages, isPrivate);
}

/**
 * Tracks which huge regions are mixed after [startGfn, endGfn) of `slot` took `attributes`.
 * Mirrors: kvm_arch_post_set_memory_attributes()
 */
export function postSetMemoryAttributes(slot: Memslot, startGfn: u64, endGfn: u64, attributes: u64): void {
  trace2(EV_POST_ATTR, MAY_BLOCK | (slot.asId << 5), slot.id, startGfn, endGfn, attributes);
  const isPrivate = attributes != 0;
  const slotEnd = endGfnOf(slot);
  for (let level = 2; level <= 3; level++) {
    const pages = pagesOf(level);
    let gfn = startGfn & ~(pages - 1);
    if (gfn != startGfn || gfn + pages > endGfn) {
      if (gfn >= slot.baseGfn && gfn + pages <= slotEnd) {
        setRegionMixed(slot, level, gfn, !regionHasAttributes(slot, level, gfn, isPrivate));
      }
      gfn += pages;
    }
    const wholeEnd = endGfn & ~(pages - 1);
    if (gfn < wholeEnd) {
      setMixed(slot, level, gfn, wholeEnd, false);
      gfn = wholeEnd;
    }
    if (gfn < endGfn && gfn + pages <= slotEnd) {
      setRegionMixed(slot, level, gfn, !regionHasAttributes(slot, level, gfn, isPrivate));
    }
  }
}

/** Adds what initMemslotMixed() needs for a slot of `npages`: every region may be mixed. */
export function wantMemslotMixed(npages: u64): void {
  want((npages >> 27) + (npages >> 36) + 16, 4);
  wantBlocksOf((npages >> 18) + (npages >> 27));
}

/**
 * Computes the mixed regions of a slot that is created over attributes set before. Requires: wantMemslotMixed().
 * Mirrors: kvm_mmu_init_memslot_memory_attributes()
 */
export function initMemslotMixed(slot: Memslot): void {
  if (!hasPrivateMem()) return;
  for (let level = 2; level <= 3; level++) {
    const pages = pagesOf(level);
    const first = (slot.baseGfn + pages - 1) & ~(pages - 1);
    const last = endGfnOf(slot) & ~(pages - 1);
    let gfn = first;
    while (gfn < last) {
      // Skip whole runs of one value: a region is mixed only where a run ends inside it.
      const run = attributesRunEnd(gfn, last);
      const wholeEnd = run & ~(pages - 1);
      if (run >= last) break;
      if (wholeEnd != run) setMixed(slot, level, wholeEnd, wholeEnd + pages, true);
      gfn = wholeEnd == run ? run : wholeEnd + pages;
    }
  }
}
