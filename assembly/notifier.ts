// From hva ranges to gfn ranges, slot by slot: what the primary MMU tells KVM.
// Mirrors: virt/kvm/kvm_main.c (__kvm_handle_hva_range, kvm_mmu_notifier_*)

import { C_LOCK_SECTIONS, C_NOTIFIER_EVENTS, count, ctl, FORM_GMEM_IN_PLACE, STALE_TREE } from './control';
import { mmuInvalidateBegin, mmuInvalidateEnd, mmuInvalidateRangeAdd } from './invalidate';
import { PRODUCER_NOTIFIER } from './losses';
import { BY_HVA, endHvaOf, Memslot, slotAtPlace, slotCount } from './memslots';
import { ageGfn, setSpteGfn, testAgeGfn, unmapGfnRange, wantGfnRange, wantGfnRanges } from './mmu';
import { treeSet } from './page_table';
import { findRoot, ROOT_DIRECT, tdpMmuHasLeafs } from './tdp_mmu';
import { flushRemoteTlbs } from './tlb';
import { EV_AGE_HVA, EV_RECLAIMED, EV_TEST_AGE_HVA, EV_UNMAP_HVA, trace, trace2 } from './trace';
import { MAY_BLOCK, SELECT_NOTIFIER } from './vendor';

/** The gfns of `slot` that any byte of [start, end) touches, in rangeStart and rangeEnd. False if none. */
let rangeStart: u64 = 0;
let rangeEnd: u64 = 0;
function clampTo(slot: Memslot, start: u64, end: u64): bool {
  const from = max(start, slot.hva);
  const to = min(end, endHvaOf(slot));
  if (from >= to) return false;
  rangeStart = slot.baseGfn + ((from - slot.hva) >> 12);
  rangeEnd = slot.baseGfn + ((to - slot.hva + 4095) >> 12);
  return true;
}

/** Whether any slot meets [start, end). */
function anySlotMeets(start: u64, end: u64): bool {
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    for (let place: u32 = 0; place < slotCount(asId); place++) {
      const slot = slotAtPlace(asId, BY_HVA, place);
      if (slot.hva >= end) break;
      if (endHvaOf(slot) > start) return true;
    }
  }
  return false;
}

/**
 * Zaps what maps [start, end) and holds faults off until the matching end. Returns whether a slot was met: if none,
 * nothing is locked, counted or flushed.
 * Mirrors: kvm_mmu_notifier_invalidate_range_start()
 */
export function mmuNotifierInvalidateRangeStart(start: u64, end: u64, blockable: bool): bool {
  trace2(EV_UNMAP_HVA, 0, 0, start, end, 0);
  count(C_NOTIFIER_EVENTS, 1);
  ctl.notifierActive++;
  if (end <= start) return false;
  const selector = SELECT_NOTIFIER | (blockable ? MAY_BLOCK : 0);
  ctl.producer = PRODUCER_NOTIFIER;
  let locked = false;
  let flush: bool = false;
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    for (let place: u32 = 0; place < slotCount(asId); place++) {
      const slot = slotAtPlace(asId, BY_HVA, place);
      if (slot.hva >= end) break;
      if (!clampTo(slot, start, end)) continue;
      if (!locked) {
        locked = true;
        count(C_LOCK_SECTIONS, 1);
        mmuInvalidateBegin();
      }
      const from = rangeStart;
      const to = rangeEnd;
      mmuInvalidateRangeAdd(from, to);
      flush = unmapGfnRange(slot, from, to, 0, selector) || flush;
    }
  }
  if (flush) flushRemoteTlbs();
  if (locked) trace(EV_RECLAIMED, 0, 0, 0);
  return locked;
}

/** Mirrors: kvm_mmu_notifier_invalidate_range_end() */
export function mmuNotifierInvalidateRangeEnd(start: u64, end: u64): void {
  if (end > start && anySlotMeets(start, end)) {
    count(C_LOCK_SECTIONS, 1);
    mmuInvalidateEnd();
  }
  ctl.notifierActive--;
}

/** Adds to a reservation what one event over [start, end) needs in the slots that it meets. */
export function wantEvent(start: u64, end: u64): void {
  wantSlots(start, end, false);
}
/** As wantEvent(), for any number of events in [start, end), each for a part of it. */
export function wantEvents(start: u64, end: u64): void {
  wantSlots(start, end, true);
}
function wantSlots(start: u64, end: u64, inParts: bool): void {
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    for (let place: u32 = 0; place < slotCount(asId); place++) {
      const slot = slotAtPlace(asId, BY_HVA, place);
      if (slot.hva >= end) break;
      if (!clampTo(slot, start, end)) continue;
      if (inParts) wantGfnRanges(slot, rangeStart, rangeEnd);
      else wantGfnRange(slot, rangeStart, rangeEnd);
    }
  }
}

const AGE: u32 = 0;
const TEST_AGE: u32 = 1;
const SET_SPTE: u32 = 2;

/** Calls one handler that never blocks for each slot that meets [start, end); no invalidation is begun. */
function handleHvaRange(start: u64, end: u64, handler: u32, arg: u64): bool {
  let result: bool = false;
  let locked = false;
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    for (let place: u32 = 0; place < slotCount(asId); place++) {
      const slot = slotAtPlace(asId, BY_HVA, place);
      if (slot.hva >= end) break;
      if (!clampTo(slot, start, end)) continue;
      if (!locked) {
        locked = true;
        count(C_LOCK_SECTIONS, 1);
      }
      if (handler == AGE) result = ageGfn(slot, rangeStart, rangeEnd, SELECT_NOTIFIER) || result;
      else if (handler == TEST_AGE) result = testAgeGfn(slot, rangeStart, rangeEnd, SELECT_NOTIFIER) || result;
      else result = setSpteGfn(slot, rangeStart, rangeEnd, arg, SELECT_NOTIFIER) || result;
    }
  }
  return result;
}

/** Mirrors: kvm_mmu_notifier_clear_young(). Never flushes. */
export function mmuNotifierAge(start: u64, end: u64): bool {
  trace2(EV_AGE_HVA, 0, 0, start, end, 0);
  return handleHvaRange(start, end, AGE, 0);
}

/** Mirrors: kvm_mmu_notifier_clear_flush_young(): flushes if any was young. */
export function mmuNotifierAgeFlush(start: u64, end: u64): bool {
  trace2(EV_AGE_HVA, 0, 0, start, end, 0);
  const young = handleHvaRange(start, end, AGE, 0);
  if (young) flushRemoteTlbs();
  return young;
}

/** Mirrors: kvm_mmu_notifier_test_young() */
export function mmuNotifierTestAge(hva: u64): bool {
  trace2(EV_TEST_AGE_HVA, 0, 0, hva, hva + 1, 0);
  return handleHvaRange(hva, hva + 1, TEST_AGE, 0);
}

/** The host pte of one page changed within an invalidation. Mirrors: kvm_mmu_notifier_change_pte(), before 6.10 */
export function mmuNotifierChangePte(hva: u64, writable: bool): bool {
  const flush = handleHvaRange(hva, hva + 1, SET_SPTE, writable ? 3 : 1);
  if (flush) flushRemoteTlbs();
  return flush;
}

/**
 * The host pages of [start, end) are freed or replaced. Leaves that still map them are recorded for vm.check(): a
 * correct notifier left none.
 */
export function hostBackingGone(start: u64, end: u64): void {
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    const root = findRoot(ROOT_DIRECT, asId);
    if (root === null) continue;
    for (let place: u32 = 0; place < slotCount(asId); place++) {
      const slot = slotAtPlace(asId, BY_HVA, place);
      if (slot.hva >= end) break;
      if (!clampTo(slot, start, end)) continue;
      // What guest_memfd backs has nothing of the host's behind it.
      if (ctl.filterForm == FORM_GMEM_IN_PLACE && slot.gmem != 0) continue;
      if (!tdpMmuHasLeafs(root, rangeStart, rangeEnd)) continue;
      treeSet(STALE_TREE, 7, rangeStart, rangeEnd, 1, 1);
      ctl.staleRecords = 1;
    }
  }
}
