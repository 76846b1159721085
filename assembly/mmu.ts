// One kvm_gfn_range over the roots it selects: the corridor that every range goes through.
//
// Which roots a range means, and what a zap does to the content behind it, is the vendor's to say (vendor.ts).
// Mirrors: arch/x86/kvm/mmu/mmu.c, struct kvm_gfn_range (include/linux/kvm_host.h)

import { reserveAmply, wantCuts, wantScattered } from './blocks';
import { C_LOCK_SECTIONS, count, ctl, FORM_TDX_V18, hasMirroredTdp } from './control';
import { gmemAt, PAGES_LEVEL, pagesTree } from './gmems';
import { mmuInvalidateBegin, mmuInvalidateEnd, mmuInvalidateRangeAdd } from './invalidate';
import { lossRequest, PRODUCER_ZAP_GFN_RANGE } from './losses';
import { Memslot } from './memslots';
import {
  ALL_AS,
  ROOTS_BOTH,
  ROOTS_DIRECT,
  tdpMmuAge,
  tdpMmuSetSpte,
  tdpMmuUnmapRange,
  wantScatteredWalks,
  wantWalk,
} from './tdp_mmu';
import { tdxZapsPiecewise } from './tdx';
import { flushRemoteTlbsRange } from './tlb';
import {
  EV_AGE_GFN,
  EV_GFN_RANGE_RET,
  EV_SET_SPTE_GFN,
  EV_TEST_AGE_GFN,
  EV_UNMAP_GFN_RANGE,
  trace,
  trace2,
} from './trace';
import { MAY_BLOCK, vendorRootsOfRange, vendorSplitForZap } from './vendor';

function traceRange(type: u32, slot: Memslot, startGfn: u64, endGfn: u64, arg: u64, selector: u32): void {
  trace2(type, selector | (slot.asId << 5), slot.id, startGfn, endGfn, arg);
}

/**
 * Zaps the leaf sptes of `slot` in [startGfn, endGfn) that the selector means.
 * Requires: mmuInvalidateBegin() has been called; the range lies within the slot.
 * Returns: true if the caller must flush remote TLBs. Sets ctl.splitFailed, and zaps nothing, where a private huge leaf
 * could not be split.
 * Mirrors: kvm_unmap_gfn_range()
 */
export function unmapGfnRange(slot: Memslot, startGfn: u64, endGfn: u64, arg: u64, selector: u32): bool {
  if (ctl.traceOn != 0) traceRange(EV_UNMAP_GFN_RANGE, slot, startGfn, endGfn, arg, selector);
  lossRequest(startGfn, endGfn, arg, selector);
  const roots = vendorRootsOfRange(selector, arg);
  if (ctl.privateHugePages != 0 && !vendorSplitForZap(startGfn, endGfn, roots)) ctl.splitFailed = 1;
  const whole = ctl.splitFailed == 0;
  const flush =
    whole && tdpMmuUnmapRange(roots, slot.asId, startGfn, endGfn, (selector & MAY_BLOCK) != 0, false, false);
  if (ctl.traceOn != 0) trace(EV_GFN_RANGE_RET, flush ? 1 : 0, EV_UNMAP_GFN_RANGE, 0);
  return flush;
}

/** Adds to a reservation what unmapGfnRange() and the other calls on this range need. */
export function wantGfnRange(slot: Memslot, startGfn: u64, endGfn: u64): void {
  wantWalk(slot.asId, startGfn, endGfn);
  if (!hasMirroredTdp() || slot.gmem == 0) return;
  const offset = slot.gmemPgoff - slot.baseGfn;
  const tree = pagesTree(gmemAt(slot.gmem - 1));
  if (tdxZapsPiecewise()) wantScattered(tree, PAGES_LEVEL, startGfn + offset, endGfn + offset, 1, true);
  wantCuts(tree, PAGES_LEVEL, startGfn + offset, endGfn + offset);
}

/** What wantGfnRange() adds at most for a root, with the S-EPT and the file beneath: upper tables, blocks for leaf tables. */
const ROOT_UPPERS: u64 = 64;
const ROOT_BLOCKS: u64 = 150;
/** What else of a slot changes with a range, at most: attributes and mixed trees, or the pages of its file. */
const SLOT_UPPERS: u64 = 48;
const SLOT_BLOCKS: u64 = 80;

/**
 * reserveAmply() for `ranges` ranges of slots that are zapped and converted, or whose file pages go. False also where a TD's
 * zaps need as much as there are pages, and where accepts are under way.
 */
export function reserveAmplyForRanges(ranges: u32): bool {
  if (hasMirroredTdp() && (ctl.acceptsBegun != 0 || tdxZapsPiecewise())) return false;
  const each = <u64>ranges;
  const roots = <u64>ctl.rootHighWater;
  return reserveAmply(each * (SLOT_UPPERS + roots * ROOT_UPPERS), each * (SLOT_BLOCKS + roots * ROOT_BLOCKS));
}

/** As wantGfnRange(), for any number of calls on parts of the range. */
export function wantGfnRanges(slot: Memslot, startGfn: u64, endGfn: u64): void {
  wantScatteredWalks(slot.asId, startGfn, endGfn);
  if (!hasMirroredTdp() || slot.gmem == 0) return;
  const offset = slot.gmemPgoff - slot.baseGfn;
  // A private page that goes is no longer written, nor the TD's.
  wantScattered(pagesTree(gmemAt(slot.gmem - 1)), PAGES_LEVEL, startGfn + offset, endGfn + offset, 2, false);
}

/** Mirrors: kvm_age_gfn() */
export function ageGfn(slot: Memslot, startGfn: u64, endGfn: u64, selector: u32): bool {
  if (ctl.traceOn != 0) traceRange(EV_AGE_GFN, slot, startGfn, endGfn, 0, selector);
  const young = tdpMmuAge(vendorRootsOfRange(selector, 0), slot.asId, startGfn, endGfn, false);
  if (ctl.traceOn != 0) trace(EV_GFN_RANGE_RET, young ? 1 : 0, EV_AGE_GFN, 0);
  return young;
}

/** Mirrors: kvm_test_age_gfn() */
export function testAgeGfn(slot: Memslot, startGfn: u64, endGfn: u64, selector: u32): bool {
  if (ctl.traceOn != 0) traceRange(EV_TEST_AGE_GFN, slot, startGfn, endGfn, 0, selector);
  const young = tdpMmuAge(vendorRootsOfRange(selector, 0), slot.asId, startGfn, endGfn, true);
  if (ctl.traceOn != 0) trace(EV_GFN_RANGE_RET, young ? 1 : 0, EV_TEST_AGE_GFN, 0);
  return young;
}

/** On the one gfn of the range; `arg` is the new host pte: bit 0 present, bit 1 writable. Mirrors: kvm_set_spte_gfn() */
export function setSpteGfn(slot: Memslot, startGfn: u64, endGfn: u64, arg: u64, selector: u32): bool {
  if (ctl.traceOn != 0) traceRange(EV_SET_SPTE_GFN, slot, startGfn, endGfn, arg, selector);
  const roots = vendorRootsOfRange(selector, 0);
  const flush = tdpMmuSetSpte(roots, slot.asId, startGfn, (arg & 2) != 0);
  if (ctl.traceOn != 0) trace(EV_GFN_RANGE_RET, flush ? 1 : 0, EV_SET_SPTE_GFN, 0);
  return flush;
}

/**
 * Zaps [startGfn, endGfn) in all valid roots of every address space; the TDX series (form tdx-v18) leaves private
 * mappings alone. Requires: room is reserved. Mirrors: kvm_zap_gfn_range()
 */
export function zapGfnRange(startGfn: u64, endGfn: u64): void {
  count(C_LOCK_SECTIONS, 1);
  mmuInvalidateBegin();
  mmuInvalidateRangeAdd(startGfn, endGfn);
  const kinds = ctl.filterForm == FORM_TDX_V18 ? ROOTS_DIRECT : ROOTS_BOTH;
  ctl.producer = PRODUCER_ZAP_GFN_RANGE;
  lossRequest(startGfn, endGfn, 0, 0);
  const flush = tdpMmuUnmapRange(kinds, ALL_AS, startGfn, endGfn, true, true, false);
  if (flush) flushRemoteTlbsRange(startGfn, endGfn - startGfn);
  mmuInvalidateEnd();
}
