// KVM's side of a TD: what a change of the mirror asks of the module, and what KVM does when the module refuses.
//
//   mirror change                     here                   calls of the module (spec 7.3, 7.4)
//   non-present -> table              tdxSeptLink()          SEPT.ADD
//   non-present -> leaf               tdxSeptSet()           PAGE.AUG; before FINALIZE only counted, PAGE.ADD comes later
//   leaf -> non-present               tdxZapped()            BLOCK, TRACK, kick all, REMOVE, WBINVD, the page is cleared
//   2M leaf -> table of 4K leaves     tdxSeptSplit()         BLOCK, TRACK, kick all, DEMOTE
//   table freed                       tdxFreeTables()        RECLAIM, once the key is gone
//
// A run of leaves that nothing can interfere with is carried out at once; else leaf by leaf, each call with its retry.
// Mirrors: arch/x86/kvm/vmx/tdx.c

import { want } from './blocks';
import {
  C_KICK_IPIS,
  C_KICKS,
  C_PAGE_REMOVE,
  C_PAGE_WBINVD,
  C_PAGES_ACCEPTED,
  C_PAGES_CLEARED,
  C_PAGES_LEAKED,
  C_PRIVATE_PAGES_LOST,
  C_PRIVATE_PAGES_TO_ACCEPT,
  C_RANGE_BLOCK,
  C_RETRIES_BUSY,
  C_TRACK,
  count,
  ctl,
  INHIBIT_TREE,
  SEPT_TREE,
} from './control';
import { pagesOf } from './entry';
import { vcpuFaults } from './faults';
import { gmemAt, PAGE_OWNED, PAGE_RESIDENT, PAGE_TOUCHED, PAGE_WRITTEN, PAGES_LEVEL, pagesTree } from './gmems';
import { lossOfContent, lossPossible } from './losses';
import { BY_GFN, endGfnOf, firstPlaceByGfn, gfnToMemslot, Memslot, slotAtPlace, slotCount } from './memslots';
import { atEnd, atFlags, atLevel, treeAt, treeCount, treeFlags, treeModify, treeRunEnd, treeSet } from './page_table';
import {
  CACHE_WB,
  cleared2m,
  cleared4k,
  clearedAccepted,
  KEY_FREEID,
  lastFailure,
  PAGE_ACCEPT,
  PAGE_ADD,
  PAGE_AUG,
  PAGE_DEMOTE,
  PAGE_PROMOTE,
  PAGE_RECLAIM,
  PAGE_REMOVE,
  PAGE_WBINVD,
  plainSeamcalls,
  RANGE_BLOCK,
  removedPending,
  SEPT_ADD,
  SEPT_PRESENT,
  septClear,
  septFlags,
  septLevel,
  septMapRun,
  septQuiet,
  septTrackRun,
  septUnlockExclusive,
  septUnlockShared,
  TD_BUILD,
  TD_RUNNABLE,
  TD_TEARDOWN,
  TDX_EPT_ENTRY_STATE_INCORRECT,
  TDX_FLUSHVP_NOT_DONE,
  TDX_INTERRUPTED_RESTARTABLE,
  TDX_OPERAND_BUSY,
  TDX_SUCCESS,
  TRACK,
  tdExit,
  tdgMemPageAccept,
  tdhMemPageAdd,
  tdhMemPageAug,
  tdhMemPageDemote,
  tdhMemPagePromote,
  tdhMemPageRemove,
  tdhMemRangeBlock,
  tdhMemSeptAdd,
  tdhMemTrack,
  tdhVpEnter,
  VP_FLUSH,
  VPFLUSHDONE,
} from './tdx_module';
import { flushIfAsked } from './tlb';
import { EV_KICK, EV_SEPT_REMOVED, trace } from './trace';
import { Vcpu, vcpuAt } from './vcpus';

/** From here on the mirror and the S-EPT may disagree. Mirrors: KVM_BUG_ON() */
function vmBug(): void {
  ctl.dead = 1;
  ctl.septDiverged = 1;
}

// --- Which page is behind a gfn --------------------------------------------------------------------------------------

/**
 * Changes the flags of the resident file pages behind the private gfns [startGfn, endGfn): bits of gmems.ts.
 * Requires: reserve() for two boundary paths in each file met.
 */
function modifyPages(startGfn: u64, endGfn: u64, clear: u32, set: u32): void {
  for (let place = firstPlaceByGfn(0, startGfn); place < slotCount(0); place++) {
    const slot = slotAtPlace(0, BY_GFN, place);
    if (slot.baseGfn >= endGfn) break;
    if (slot.gmem == 0) continue;
    const offset = slot.gmemPgoff - slot.baseGfn;
    const first = max(startGfn, slot.baseGfn) + offset;
    const end = min(endGfn, endGfnOf(slot)) + offset;
    treeModify(pagesTree(gmemAt(slot.gmem - 1)), PAGES_LEVEL, first, end, PAGE_RESIDENT, clear, set);
  }
}

/** Whether the PAMT says that a page behind [gfn, gfn + pages) belongs to the TD already. */
function pageOwned(slot: Memslot, gfn: u64, pages: u64): bool {
  if (slot.gmem == 0) return false;
  const first = gfn - slot.baseGfn + slot.gmemPgoff;
  const end = min(first + pages, slot.gmemPgoff + slot.npages);
  return treeCount(pagesTree(gmemAt(slot.gmem - 1)), PAGES_LEVEL, first, end, PAGE_RESIDENT | PAGE_OWNED) != 0;
}

/** Accepted pages hold the zeroes that the guest asked for: content, until they are removed. */
export function tdxAcceptedContent(startGfn: u64, endGfn: u64): void {
  modifyPages(startGfn, endGfn, 0, PAGE_WRITTEN | PAGE_TOUCHED);
  count(C_PAGES_ACCEPTED, endGfn - startGfn);
}

// --- vCPUs in and out ------------------------------------------------------------------------------------------------

/** The TDCALL of a begun accept ends before the vCPU can be interrupted. Returns its status. */
export function tdxAcceptEnd(vcpu: Vcpu): u32 {
  const level = <i32>vcpu.acceptLevel;
  const gfn = vcpu.acceptGfn;
  vcpu.acceptGfnLevel = 0;
  ctl.acceptsBegun--;
  septUnlockShared();
  const status = tdgMemPageAccept(gfn, level);
  if (status == TDX_SUCCESS) tdxAcceptedContent(gfn, gfn + pagesOf(level));
  return status;
}

/** vcpu.eptFaults while TDH.VP.ENTER looks at faulting gpas with the tree to itself. */
export const ENTERING: u32 = 0x80000000;

/** An EPT fault from which the guest comes back to the same instruction: what zero-step mitigation counts. */
export function tdxNoProgress(vcpu: Vcpu): void {
  if (vcpu.eptFaults < 1000) vcpu.eptFaults++;
}

function leaveTd(vcpu: Vcpu): void {
  if (vcpu.acceptLevel != 0) tdxAcceptEnd(vcpu);
  if (vcpu.eptFaults & ENTERING) {
    vcpu.eptFaults = 0;
    septUnlockExclusive();
  }
  tdExit(vcpu);
}

/**
 * KVM_REQ_OUTSIDE_GUEST_MODE to all: each vCPU in guest mode gets an IPI and leaves; it is back inside before the caller
 * goes on, unless a retry holds entries off. Mirrors: kvm_make_all_cpus_request()
 */
function kickAll(): void {
  if (ctl.dead != 0) allOut();
  count(C_KICKS, 1);
  let inside: u32 = 0;
  for (let index: u32 = 0; index < ctl.vcpuCount; index++) {
    const vcpu = vcpuAt(index);
    const held = vcpu.inTd != 0 || (vcpu.eptFaults & ENTERING) != 0;
    if (!held) continue;
    inside++;
    leaveTd(vcpu);
  }
  count(C_KICK_IPIS, <u64>inside);
  trace(EV_KICK, 0, inside, 0);
  if (ctl.waitForSeptZap == 0) returnAll();
}
/** A VM that died has no vCPU inside. Mirrors: KVM_REQ_VM_DEAD */
function allOut(): void {
  for (let index: u32 = 0; index < ctl.vcpuCount; index++) leaveTd(vcpuAt(index));
}
/** Whether a vCPU runs guest code, and is outside for no fault of its own: the next kick brings it back. */
function waitsOutside(index: u32): bool {
  const vcpu = vcpuAt(index);
  return vcpu.inGuest != 0 && vcpu.inTd == 0 && !vcpuFaults(index);
}
/** Every vCPU that runs guest code goes in again. */
function returnAll(): void {
  if (ctl.dead != 0) return;
  for (let index: u32 = 0; index < ctl.vcpuCount; index++) if (waitsOutside(index)) tdxVcpuEnter(vcpuAt(index));
}

/** Mirrors: tdx_no_vcpus_enter_start() */
function noVcpusEnterStart(): void {
  ctl.waitForSeptZap = 1;
  kickAll();
}
/** Mirrors: tdx_no_vcpus_enter_stop() */
function noVcpusEnterStop(): void {
  ctl.waitForSeptZap = 0;
  returnAll();
}

/** Enters the TD, what it owes done. Returns whether the vCPU is inside. Mirrors: tdx_vcpu_run() */
export function tdxVcpuEnter(vcpu: Vcpu): bool {
  if (vcpu.inTd != 0) return true;
  flushIfAsked(vcpu);
  if (ctl.waitForSeptZap != 0) return false;
  return tdhVpEnter(vcpu) == TDX_SUCCESS;
}

export function tdxVcpuExit(vcpu: Vcpu): void {
  leaveTd(vcpu);
}

// --- Building --------------------------------------------------------------------------------------------------------

/** The table with entries of `level` for `gfn`: linked in the S-EPT. Mirrors: tdx_sept_link_private_spt() */
export function tdxSeptLink(gfn: u64, level: i32): u32 {
  return settled(tdhMemSeptAdd(gfn & ~(pagesOf(level + 1) - 1), level));
}

/** The page at `gfn`: added to the S-EPT. Mirrors: tdx_sept_set_private_spte(), tdx_mem_page_record_premap_cnt() */
export function tdxSeptSet(slot: Memslot, gfn: u64, level: i32): u32 {
  if (ctl.tdState == TD_BUILD) {
    ctl.premapped++;
    return TDX_SUCCESS;
  }
  const status = settled(tdhMemPageAug(gfn, level, pageOwned(slot, gfn, pagesOf(level))));
  if (status == TDX_SUCCESS) modifyPages(gfn, gfn + pagesOf(level), 0, PAGE_OWNED);
  return status;
}

/** BUSY is tried again by the vCPU; anything else but success is a bug. */
function settled(status: u32): u32 {
  if (status == TDX_OPERAND_BUSY) count(C_RETRIES_BUSY, 1);
  else if (status != TDX_SUCCESS) vmBug();
  return status;
}

/** As many tdxSeptSet() as [startGfn, endGfn) has pages of `level`. Requires: septQuiet(). */
export function tdxSeptSetRun(startGfn: u64, endGfn: u64, level: i32): void {
  septMapRun(startGfn, endGfn, level);
  modifyPages(startGfn, endGfn, 0, PAGE_OWNED);
}

/** PAGE.ADD of a page that is premapped. Mirrors: tdx_gmem_post_populate() */
export function tdxPageAdd(slot: Memslot, gfn: u64): u32 {
  const status = tdhMemPageAdd(gfn, 1, pageOwned(slot, gfn, 1));
  if (status != TDX_SUCCESS) return status;
  ctl.premapped--;
  modifyPages(gfn, gfn + 1, 0, PAGE_OWNED | PAGE_WRITTEN | PAGE_TOUCHED);
  return status;
}

/** As many tdxPageAdd() as [startGfn, endGfn) has pages; they are not premapped. Requires: septQuiet(). */
export function tdxPageAddRun(startGfn: u64, endGfn: u64): void {
  septMapRun(startGfn, endGfn, 1);
  modifyPages(startGfn, endGfn, 0, PAGE_OWNED | PAGE_WRITTEN | PAGE_TOUCHED);
}

// --- Removing --------------------------------------------------------------------------------------------------------

/** Adds to a reservation what tdxZapped() needs beyond the range itself. */
export function wantTdxZap(): void {
  // Huge leaves at the ends go, or are split, whole: a path each in the S-EPT, the mirror and the file.
  if (ctl.privateHugePages != 0) want(24, 6);
  // A kick ends each accept under way: a path in the S-EPT and one in the file.
  want(12 * <u64>ctl.acceptsBegun, 4 * <u64>ctl.acceptsBegun);
}

/** Whether a zap goes piece by piece: each leaf table beneath may then need all its planes. */
export function tdxZapsPiecewise(): bool {
  return ctl.traceOn != 0 || ctl.budget < Infinity || ctl.premapped != 0 || !removesAtOnce();
}
/** Whether no page of a run is removed in another way than the first: no call fails, and each kick meets the same vCPUs. */
function removesAtOnce(): bool {
  if (!septQuiet()) return false;
  for (let index: u32 = 0; index < ctl.vcpuCount; index++) if (waitsOutside(index)) return false;
  return true;
}

/** The end of the S-EPT leaves alike that begin at or behind `gfn`, for a trace of one run at a time. */
export function tdxRunEnd(gfn: u64, limit: u64): u64 {
  return treeRunEnd(SEPT_TREE, septLevel(), gfn, limit);
}

/**
 * The mirror leaves of [startGfn, endGfn) became non-present: takes their pages from the TD. A failure that is no BUSY, or a
 * second BUSY, bugs the VM and leaves the S-EPT as it is; the walk goes on. Where the trees may disagree, all of the range
 * were leaves of `level`; else 0.
 * Mirrors: tdx_sept_remove_private_spte() for each leaf, in gfn order
 */
export function tdxZapped(startGfn: u64, endGfn: u64, level: i32): void {
  if (ctl.dead != 0) allOut();
  if (ctl.tdState == TD_TEARDOWN) {
    reclaimRun(startGfn, endGfn);
    return;
  }
  if (level != 0) {
    removeLeafsOf(startGfn, endGfn, level);
    return;
  }
  if (removesAtOnce()) {
    removeRun(startGfn, endGfn);
    return;
  }
  if (ctl.trackBatched != 0) {
    removeBatched(startGfn, endGfn);
    return;
  }
  let gfn = startGfn;
  while (gfn < endGfn) {
    treeAt(SEPT_TREE, septLevel(), gfn);
    if ((atFlags & SEPT_PRESENT) == 0) {
      gfn = min(atEnd, endGfn);
      continue;
    }
    const level = atLevel;
    const first = gfn & ~(pagesOf(level) - 1);
    removeLeaf(first, level);
    gfn = first + pagesOf(level);
  }
}

/** Whether leaves of the mirror may not be those of the S-EPT: a zap then goes by the mirror, leaf by leaf. */
export function tdxMayDisagree(): bool {
  return ctl.septDiverged != 0 || ctl.premapped != 0;
}

/** What the mirror says there was, whatever the S-EPT holds. */
function removeLeafsOf(startGfn: u64, endGfn: u64, level: i32): void {
  const pages = pagesOf(level);
  for (let gfn = startGfn & ~(pages - 1); gfn < endGfn; gfn += pages) {
    if (ctl.premapped != 0 && (septFlags(gfn) & SEPT_PRESENT) == 0) forgetPremapped(gfn);
    else removeLeaf(gfn, level);
  }
}

/** Mapped in the mirror, never added: BLOCK finds nothing, which KVM expects. Mirrors: tdx_is_sept_zap_err_due_to_premap() */
function forgetPremapped(gfn: u64): void {
  if (tdhMemRangeBlock(gfn, 1) == TDX_EPT_ENTRY_STATE_INCORRECT) ctl.premapped--;
}

/** First and last gfn that the leaves of a range reach. */
function reachDown(gfn: u64): u64 {
  if (ctl.privateHugePages == 0) return gfn;
  const present = (septFlags(gfn) & SEPT_PRESENT) != 0;
  return present ? gfn & ~(pagesOf(atLevel) - 1) : gfn;
}
function reachUp(endGfn: u64): u64 {
  if (ctl.privateHugePages == 0) return endGfn;
  const present = (septFlags(endGfn - 1) & SEPT_PRESENT) != 0;
  return present ? ((endGfn - 1) | (pagesOf(atLevel) - 1)) + 1 : endGfn;
}

/** What the guest lost with pages that left the TD. */
function lostPages(accepted: u64): void {
  count(C_PRIVATE_PAGES_LOST, accepted);
  count(C_PRIVATE_PAGES_TO_ACCEPT, accepted);
}

/** Notes which accepted pages of [startGfn, endGfn), about to be removed, nobody asked to lose. */
function noteLosses(startGfn: u64, endGfn: u64): void {
  if (!lossPossible(startGfn, endGfn)) return;
  let gfn = startGfn;
  while (gfn < endGfn) {
    treeAt(SEPT_TREE, septLevel(), gfn);
    const end = min(atEnd, endGfn);
    if (atFlags == SEPT_PRESENT) lossOfContent(gfn, end);
    gfn = end;
  }
}

function removeRun(startGfn: u64, endGfn: u64): void {
  const first = reachDown(startGfn);
  const last = reachUp(endGfn);
  noteLosses(first, last);
  const level = ctl.traceOn != 0 && (septFlags(startGfn) & SEPT_PRESENT) != 0 ? atLevel : 1;
  septClear(startGfn, endGfn);
  const leafs = cleared4k + cleared2m;
  if (leafs == 0) return;
  const pages = cleared4k + cleared2m * 512;
  const runnable = ctl.tdState == TD_RUNNABLE;
  const batched = ctl.trackBatched != 0;
  count(C_RANGE_BLOCK, leafs);
  if (runnable) {
    let inside: u32 = 0;
    for (let index: u32 = 0; index < ctl.vcpuCount; index++) {
      const vcpu = vcpuAt(index);
      if (vcpu.inTd == 0) continue;
      inside++;
      flushIfAsked(vcpu);
    }
    const tracks = batched ? 1 : leafs;
    count(C_TRACK, tracks);
    count(C_KICKS, tracks);
    count(C_KICK_IPIS, tracks * <u64>inside);
    septTrackRun(tracks, inside);
  }
  count(C_PAGE_REMOVE, leafs);
  count(C_PAGE_WBINVD, pages);
  count(C_PAGES_CLEARED, pages);
  lostPages(clearedAccepted);
  trace(EV_SEPT_REMOVED, (runnable ? 1 : 0) | (batched ? 2 : 0) | (level << 12), <u32>leafs, first);
  modifyPages(first, last, PAGE_WRITTEN | PAGE_OWNED, 0);
}

/** The calls that work on an entry alone: those that need to know its page are made elsewhere. */
function callModule(leaf: u32, gfn: u64, level: i32): u32 {
  switch (leaf) {
    case RANGE_BLOCK:
      return tdhMemRangeBlock(gfn, level);
    case TRACK:
      return tdhMemTrack();
    case PAGE_DEMOTE:
      return tdhMemPageDemote(gfn, level);
    case PAGE_PROMOTE:
      return tdhMemPagePromote(gfn, level);
    default:
      return tdhMemPageRemove(gfn, level);
  }
}

/** A call that found the tree or an entry locked is made once more with all vCPUs out. Mirrors: tdh_do_no_vcpus() */
function callWithoutVcpus(leaf: u32, gfn: u64, level: i32): u32 {
  let status = callModule(leaf, gfn, level);
  if (status == TDX_OPERAND_BUSY) {
    count(C_RETRIES_BUSY, 1);
    noVcpusEnterStart();
    status = callModule(leaf, gfn, level);
    noVcpusEnterStop();
  }
  return status;
}

/** Blocks the leaf and makes sure that no TLB holds it. Returns whether it may be removed. Mirrors: tdx_track() */
function blockAndTrack(gfn: u64, level: i32): bool {
  if (callWithoutVcpus(RANGE_BLOCK, gfn, level) != TDX_SUCCESS) {
    vmBug();
    return false;
  }
  track();
  return true;
}
function track(): void {
  if (ctl.tdState != TD_RUNNABLE) return;
  if (callWithoutVcpus(TRACK, 0, 0) != TDX_SUCCESS) vmBug();
  kickAll();
}

function removeLeaf(gfn: u64, level: i32): void {
  if (blockAndTrack(gfn, level)) dropLeaf(gfn, level);
}

/** Mirrors: tdx_sept_drop_private_spte() */
function dropLeaf(gfn: u64, level: i32): void {
  if (callWithoutVcpus(PAGE_REMOVE, gfn, level) != TDX_SUCCESS) {
    vmBug();
    return;
  }
  const pages = pagesOf(level);
  if (!removedPending) {
    lostPages(pages);
    if (lossPossible(gfn, gfn + pages)) lossOfContent(gfn, gfn + pages);
  }
  if (plainSeamcalls(PAGE_WBINVD, gfn, level, pages) != 0) {
    // The page can't be used again: it stays the TD's.
    vmBug();
    modifyPages(gfn, gfn + pages, PAGE_WRITTEN, 0);
    return;
  }
  count(C_PAGES_CLEARED, pages);
  modifyPages(gfn, gfn + pages, PAGE_WRITTEN | PAGE_OWNED, 0);
}

/** The what-if of one TRACK for many: every leaf is blocked, then one TRACK and one kick, then every leaf is removed. */
function removeBatched(startGfn: u64, endGfn: u64): void {
  for (let pass = 0; pass < 2; pass++) {
    let gfn = startGfn;
    while (gfn < endGfn) {
      treeAt(SEPT_TREE, septLevel(), gfn);
      if ((atFlags & SEPT_PRESENT) == 0) {
        gfn = min(atEnd, endGfn);
        continue;
      }
      const level = atLevel;
      const first = gfn & ~(pagesOf(level) - 1);
      if (pass == 0) {
        if (callWithoutVcpus(RANGE_BLOCK, first, level) != TDX_SUCCESS) vmBug();
      } else dropLeaf(first, level);
      gfn = first + pagesOf(level);
    }
    if (pass == 0) track();
  }
}

/** After the key is gone: each page is reclaimed and cleared, nothing is blocked. Mirrors: tdx_reclaim_page() */
function reclaimRun(startGfn: u64, endGfn: u64): void {
  const first = reachDown(startGfn);
  const last = reachUp(endGfn);
  noteLosses(first, last);
  septClear(startGfn, endGfn);
  const pages = cleared4k + cleared2m * 512;
  if (pages == 0) return;
  const failed = plainSeamcalls(PAGE_RECLAIM, first, 1, pages);
  count(C_PAGES_LEAKED, failed);
  count(C_PAGES_CLEARED, pages - failed);
  lostPages(clearedAccepted);
  modifyPages(first, last, PAGE_WRITTEN | PAGE_OWNED, 0);
}

// --- Splitting -------------------------------------------------------------------------------------------------------

/**
 * The 2M leaf at `gfn` becomes 512 of 4K, in the S-EPT. Under mmu_lock held for writing. Returns the status of what failed:
 * the VM is bugged then, the leaf is whole, and blocked if BLOCK was no failure. Source: spec 7.10.
 */
export function tdxSeptSplit(gfn: u64): u32 {
  if (!blockAndTrack(gfn, 2)) return TDX_OPERAND_BUSY;
  let status = callWithoutVcpus(PAGE_DEMOTE, gfn, 2);
  // Interrupted halfway, the module asks to be called again: the call starts over.
  for (let again = 0; status == TDX_INTERRUPTED_RESTARTABLE && again < 8; again++) {
    status = callWithoutVcpus(PAGE_DEMOTE, gfn, 2);
  }
  if (status != TDX_SUCCESS) vmBug();
  return status;
}

/** Whether the guest forbade huge leaves at `gfn` by accepting a page of 4K there. */
export function tdxGuestInhibits(gfn: u64): bool {
  return treeFlags(INHIBIT_TREE, 6, gfn >> 9) != 0;
}
/** Requires: reserve() for one path. */
export function tdxGuestInhibit(gfn: u64): void {
  treeSet(INHIBIT_TREE, 6, gfn >> 9, (gfn >> 9) + 1, 1, 1);
}

// --- The end ---------------------------------------------------------------------------------------------------------

/**
 * Gives the key back: every vCPU is flushed from its CPU, the caches are written back once a package, the key is freed.
 * From here on pages can only be reclaimed. Where that fails the key stays assigned. Mirrors: tdx_mmu_release_hkid()
 */
export function tdxReleaseHkid(): void {
  if (ctl.tdState == TD_TEARDOWN) return;
  allOut();
  if (plainSeamcalls(VP_FLUSH, 0, 0, <u64>ctl.vcpuCount) != 0) vmBug();
  if (plainSeamcalls(VPFLUSHDONE, 0, 0, 1) != 0) {
    if (lastFailure != TDX_FLUSHVP_NOT_DONE) vmBug();
    return;
  }
  plainSeamcalls(CACHE_WB, 0, 0, <u64>ctl.packages);
  if (plainSeamcalls(KEY_FREEID, 0, 0, 1) != 0) {
    vmBug();
    return;
  }
  ctl.tdState = TD_TEARDOWN;
}

/**
 * `tables` mirror tables are freed. While the key is assigned that bugs the VM, and their pages are leaked.
 * Mirrors: tdx_sept_free_private_spt()
 */
export function tdxFreeTables(tables: u64): void {
  if (ctl.tdState != TD_TEARDOWN) {
    vmBug();
    count(C_PAGES_LEAKED, tables);
    return;
  }
  const failed = plainSeamcalls(PAGE_RECLAIM, 0, 0, tables);
  count(C_PAGES_LEAKED, failed);
  count(C_PAGES_CLEARED, tables - failed);
}

/** KVM_TDX_TERMINATE_VM: the key goes first, the pages are reclaimed as their files are closed. */
export function tdxTerminate(): void {
  tdxReleaseHkid();
  vmBug();
}

// --- Calls made directly ---------------------------------------------------------------------------------------------

/**
 * One call of a leaf function of the module on the page or entry of `level` at `gfn`, past KVM: the mirror knows nothing of
 * it. Returns the status. Requires: `leaf` is one of SEPT.ADD to PAGE.ACCEPT; reserve() for two boundary paths.
 */
export function tdxSeamcall(leaf: u32, gfn: u64, level: i32): u32 {
  const status = callDirectly(leaf, gfn, level);
  if (status == TDX_SUCCESS && leaf != TRACK && leaf != PAGE_ACCEPT) ctl.septDiverged = 1;
  return status;
}

function callDirectly(leaf: u32, gfn: u64, level: i32): u32 {
  const pages = pagesOf(max(level, 1));
  let status: u32;
  if (leaf == SEPT_ADD) return tdhMemSeptAdd(gfn, level - 1);
  if (leaf == PAGE_ADD || leaf == PAGE_AUG) {
    const slot = gfnToMemslot(0, gfn);
    const owned = slot !== null && pageOwned(slot, gfn, pages);
    status = leaf == PAGE_ADD ? tdhMemPageAdd(gfn, level, owned) : tdhMemPageAug(gfn, level, owned);
    if (status == TDX_SUCCESS) modifyPages(gfn, gfn + pages, 0, PAGE_OWNED);
    return status;
  }
  if (leaf == PAGE_ACCEPT) {
    status = tdgMemPageAccept(gfn, level);
    if (status == TDX_SUCCESS) tdxAcceptedContent(gfn, gfn + pages);
    return status;
  }
  status = callModule(leaf, gfn, level);
  if (leaf == PAGE_REMOVE && status == TDX_SUCCESS) {
    if (!removedPending) lostPages(pages);
    modifyPages(gfn, gfn + pages, PAGE_WRITTEN | PAGE_OWNED, 0);
  }
  return status;
}
