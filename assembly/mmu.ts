// One kvm_gfn_range over the roots it selects: the corridor that every range goes through.
//
// Which roots: the filter form says what the range's selector fields mean. Only a VM with mirrored page tables (a TD)
// has two kinds; on every other the one tree is meant, whatever the fields hold.
// Mirrors: arch/x86/kvm/mmu/mmu.c, struct kvm_gfn_range (include/linux/kvm_host.h)

import { ctl, FORM_ATTR_FILTER, FORM_GMEM_V13, FORM_RFC_V4, FORM_TDX_V18, hasMirroredTdp } from './control';
import { gmemAt, PAGE_RESIDENT, PAGE_WRITTEN, PAGES_LEVEL, pagesTree } from './gmems';
import { Memslot } from './memslots';
import { treeModify, wantCuts, wantScattered } from './page_table';
import {
  ROOTS_BOTH,
  ROOTS_DIRECT,
  ROOTS_MIRROR,
  tdpMmuAge,
  tdpMmuSetSpte,
  tdpMmuUnmapRange,
  wantScatteredWalks,
  wantWalk,
} from './tdp_mmu';
import {
  EV_AGE_GFN,
  EV_GFN_RANGE_RET,
  EV_SET_SPTE_GFN,
  EV_TEST_AGE_GFN,
  EV_UNMAP_GFN_RANGE,
  trace,
  trace2,
} from './trace';

export const KVM_FILTER_SHARED: u32 = 1;
export const KVM_FILTER_PRIVATE: u32 = 2;
/** The selector of a range, one word: attr_filter in bits 0-1, may_block 2, only_private 3, only_shared 4. */
export const MAY_BLOCK: u32 = 4;
export const ONLY_PRIVATE: u32 = 8;
export const ONLY_SHARED: u32 = 16;

/** What each producer puts into the selector (spec 2.3). */
export const SELECT_NOTIFIER: u32 = KVM_FILTER_SHARED | ONLY_SHARED;
export const SELECT_GMEM: u32 = KVM_FILTER_PRIVATE | ONLY_PRIVATE | MAY_BLOCK;

export const KVM_MEMORY_ATTRIBUTE_PRIVATE: u64 = 8;

/** Set attributes: the bools are both false, the filter names the mapping that the new value leaves behind. */
export function selectAttributes(attributes: u64): u32 {
  return MAY_BLOCK | (attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE ? KVM_FILTER_SHARED : KVM_FILTER_PRIVATE);
}

/**
 * The kinds of roots that a range with this selector works on (a set of ROOTS_*), spec 2.4.
 * Mirrors: kvm_gfn_range_filter_to_root_types() for form E; the messages and code of the other forms.
 */
export function rootsOfRange(selector: u32, attributes: u64): u32 {
  if (!hasMirroredTdp()) return ROOTS_DIRECT;
  const onlyPrivate = (selector & ONLY_PRIVATE) != 0;
  const onlyShared = (selector & ONLY_SHARED) != 0;
  const toPrivate = (attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE) != 0;
  switch (ctl.filterForm) {
    case FORM_RFC_V4:
      if (onlyPrivate) return onlyShared ? ROOTS_BOTH : ROOTS_MIRROR;
      if (onlyShared) return ROOTS_DIRECT;
      return toPrivate ? ROOTS_DIRECT : ROOTS_MIRROR;
    case FORM_TDX_V18:
      // The shared root is never skipped there.
      if (onlyPrivate) return ROOTS_BOTH;
      if (onlyShared) return ROOTS_DIRECT;
      return toPrivate ? ROOTS_DIRECT : ROOTS_BOTH;
    case FORM_GMEM_V13:
      if (onlyPrivate) return ROOTS_MIRROR;
      return onlyShared ? ROOTS_DIRECT : ROOTS_BOTH;
    case FORM_ATTR_FILTER: {
      // 0 selects nothing: the kernel warns.
      let roots: u32 = 0;
      if (selector & KVM_FILTER_SHARED) roots |= ROOTS_DIRECT;
      if (selector & KVM_FILTER_PRIVATE) roots |= ROOTS_MIRROR;
      return roots;
    }
    default:
      return ROOTS_BOTH;
  }
}

function traceRange(type: u32, slot: Memslot, startGfn: u64, endGfn: u64, arg: u64, selector: u32): void {
  trace2(type, selector | (slot.asId << 5), slot.id, startGfn, endGfn, arg);
}

/**
 * Zaps the leaf sptes of `slot` in [startGfn, endGfn) that the selector means.
 * Requires: mmuInvalidateBegin() has been called; the range lies within the slot.
 * Returns: true if the caller must flush remote TLBs.
 * Mirrors: kvm_unmap_gfn_range()
 */
export function unmapGfnRange(slot: Memslot, startGfn: u64, endGfn: u64, arg: u64, selector: u32): bool {
  if (ctl.traceOn != 0) traceRange(EV_UNMAP_GFN_RANGE, slot, startGfn, endGfn, arg, selector);
  const roots = rootsOfRange(selector, arg);
  const flush = tdpMmuUnmapRange(roots, slot.asId, startGfn, endGfn, (selector & MAY_BLOCK) != 0, false, false);
  if ((roots & ROOTS_MIRROR) != 0) contentLost(slot, startGfn, endGfn);
  trace(EV_GFN_RANGE_RET, flush ? 1 : 0, EV_UNMAP_GFN_RANGE, 0);
  return flush;
}

/** Adds to a reservation what unmapGfnRange() and the other calls on this range need. */
export function wantGfnRange(slot: Memslot, startGfn: u64, endGfn: u64): void {
  wantWalk(slot.asId, startGfn, endGfn);
  if (!hasMirroredTdp() || slot.gmem == 0) return;
  const offset = slot.gmemPgoff - slot.baseGfn;
  wantCuts(pagesTree(gmemAt(slot.gmem - 1)), PAGES_LEVEL, startGfn + offset, endGfn + offset);
}

/** As wantGfnRange(), for any number of calls on parts of the range. */
export function wantGfnRanges(slot: Memslot, startGfn: u64, endGfn: u64): void {
  wantScatteredWalks(slot.asId, startGfn, endGfn);
  if (!hasMirroredTdp() || slot.gmem == 0) return;
  const offset = slot.gmemPgoff - slot.baseGfn;
  wantScattered(pagesTree(gmemAt(slot.gmem - 1)), PAGES_LEVEL, startGfn + offset, endGfn + offset, false);
}

/** A TD's pages lose their content with their mapping: REMOVE gives them back unreadable. */
export function contentLost(slot: Memslot, startGfn: u64, endGfn: u64): void {
  if (slot.gmem == 0) return;
  const offset = slot.gmemPgoff - slot.baseGfn;
  const tree = pagesTree(gmemAt(slot.gmem - 1));
  treeModify(tree, PAGES_LEVEL, startGfn + offset, endGfn + offset, PAGE_RESIDENT | PAGE_WRITTEN, PAGE_WRITTEN, 0);
}

/** Mirrors: kvm_age_gfn() */
export function ageGfn(slot: Memslot, startGfn: u64, endGfn: u64, selector: u32): bool {
  if (ctl.traceOn != 0) traceRange(EV_AGE_GFN, slot, startGfn, endGfn, 0, selector);
  const young = tdpMmuAge(rootsOfRange(selector, 0), slot.asId, startGfn, endGfn, false);
  trace(EV_GFN_RANGE_RET, young ? 1 : 0, EV_AGE_GFN, 0);
  return young;
}

/** Mirrors: kvm_test_age_gfn() */
export function testAgeGfn(slot: Memslot, startGfn: u64, endGfn: u64, selector: u32): bool {
  if (ctl.traceOn != 0) traceRange(EV_TEST_AGE_GFN, slot, startGfn, endGfn, 0, selector);
  const young = tdpMmuAge(rootsOfRange(selector, 0), slot.asId, startGfn, endGfn, true);
  trace(EV_GFN_RANGE_RET, young ? 1 : 0, EV_TEST_AGE_GFN, 0);
  return young;
}

/** On the one gfn of the range; `arg` is the new host pte: bit 0 present, bit 1 writable. Mirrors: kvm_set_spte_gfn() */
export function setSpteGfn(slot: Memslot, startGfn: u64, endGfn: u64, arg: u64, selector: u32): bool {
  if (ctl.traceOn != 0) traceRange(EV_SET_SPTE_GFN, slot, startGfn, endGfn, arg, selector);
  const roots = rootsOfRange(selector, 0);
  const flush = tdpMmuSetSpte(roots, slot.asId, startGfn, (arg & 2) != 0);
  if ((roots & ROOTS_MIRROR) != 0) contentLost(slot, startGfn, startGfn + 1);
  trace(EV_GFN_RANGE_RET, flush ? 1 : 0, EV_SET_SPTE_GFN, 0);
  return flush;
}
