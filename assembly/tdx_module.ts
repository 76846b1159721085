// The TDX module: Secure-EPT entries, TLB epochs, page ownership, one function a SEAMCALL leaf. Knows nothing of KVM.
//
// The S-EPT is a tree of its own beside the mirror (page_table.ts), keyed by private gfn. Of a leaf:
//
//   FREE                 absent                      PENDING_BLOCKED   PRESENT | PENDING | BLOCKED
//   MAPPED               PRESENT                     BLOCKED           PRESENT | BLOCKED
//   PENDING              PRESENT | PENDING
//
// NL_MAPPED is an entry that links a table. What is blocked is rare: its epoch, and NL_BLOCKED, stand in side records.
// The owner of a page (PAMT) stands with the page itself: PAGE_OWNED of gmems.ts, set and cleared by tdx.ts, which knows
// which page is behind a gfn.
// Mirrors: the module's own source as the spec reports it, sections 7.1, 7.2 and 7.8. Left out: migration, L2 VMs.

import {
  C_ACCEPT_CALLS,
  C_MR_EXTEND,
  C_PAGE_ADD,
  C_PAGE_AUG,
  C_PAGE_DEMOTE,
  C_PAGE_PROMOTE,
  C_PAGE_RECLAIM,
  C_PAGE_REMOVE,
  C_PAGE_WBINVD,
  C_RANGE_BLOCK,
  C_SEAMCALL_ERRORS,
  C_SEPT_ADD,
  C_TD_TLB_FLUSHES,
  C_TRACK,
  C_VP_ENTER,
  C_ZERO_STEP_CHECKS,
  count,
  ctl,
  SEAMCALL_STATUS_BASE,
  SEPT_TREE,
} from './control';
import {
  childPtr,
  EMPTY,
  flagsOf,
  indexAt,
  LEAF,
  LT,
  leafLevelOf,
  pagesOf,
  setEmpty,
  setLeaf,
  setUniform,
  tagOf,
  UNIFORM,
} from './entry';
import { ltClear, ltCount } from './leaf_table';
import {
  atFlags,
  atLevel,
  ensureTable,
  expand,
  fold,
  freeSubtree,
  linked,
  resetLinked,
  treeCount,
  treeLook,
  treeModify,
  treeSet,
} from './page_table';
import { sideDelete, sideGetWide, sideHasRoom, sideKey, sideSetWide } from './side';
import { EV_SEAMCALL, trace } from './trace';
import { Vcpu, vcpuAt } from './vcpus';

export const SEPT_PRESENT: u32 = 1;
export const SEPT_PENDING: u32 = 2;
export const SEPT_BLOCKED: u32 = 8;

// The leaf functions, as traces and counts of statuses number them (LEAF_NAMES of src/tdx.ts).
export const SEPT_ADD: u32 = 0;
export const PAGE_ADD: u32 = 1;
export const PAGE_AUG: u32 = 2;
export const RANGE_BLOCK: u32 = 3;
export const TRACK: u32 = 4;
export const PAGE_REMOVE: u32 = 5;
export const PAGE_DEMOTE: u32 = 6;
export const PAGE_PROMOTE: u32 = 7;
export const PAGE_ACCEPT: u32 = 8;
export const MR_EXTEND: u32 = 9;
export const MR_FINALIZE: u32 = 10;
export const VP_ENTER: u32 = 11;
export const VP_FLUSH: u32 = 12;
export const VPFLUSHDONE: u32 = 13;
export const CACHE_WB: u32 = 14;
export const KEY_FREEID: u32 = 15;
export const PAGE_RECLAIM: u32 = 16;
export const PAGE_WBINVD: u32 = 17;
export const LEAF_FUNCTIONS: u32 = 18;

// Completion statuses (STATUS_NAMES of src/tdx.ts).
export const TDX_SUCCESS: u32 = 0;
export const TDX_OPERAND_INVALID: u32 = 1;
export const TDX_OPERAND_BUSY: u32 = 2;
export const TDX_EPT_WALK_FAILED: u32 = 3;
export const TDX_EPT_ENTRY_STATE_INCORRECT: u32 = 4;
export const TDX_GPA_RANGE_ALREADY_BLOCKED: u32 = 5;
export const TDX_GPA_RANGE_NOT_BLOCKED: u32 = 6;
export const TDX_TLB_TRACKING_NOT_DONE: u32 = 7;
export const TDX_PREVIOUS_TLB_EPOCH_BUSY: u32 = 8;
export const TDX_PAGE_METADATA_INCORRECT: u32 = 9;
export const TDX_OP_STATE_INCORRECT: u32 = 10;
export const TDX_PAGE_ALREADY_ACCEPTED: u32 = 11;
export const TDX_PAGE_SIZE_MISMATCH: u32 = 12;
export const TDX_INTERRUPTED_RESTARTABLE: u32 = 13;
export const TDX_FLUSHVP_NOT_DONE: u32 = 14;
/** Of PAGE.ACCEPT: no status but a TD exit, an EPT violation that says it came from an accept. */
export const TDX_EXIT_EPT_VIOLATION: u32 = 15;
export const STATUSES: u32 = 16;

// The life of a TD.
export const TD_BUILD: u32 = 1;
export const TD_RUNNABLE: u32 = 2;
/** Its key is gone: pages can only be reclaimed. */
export const TD_TEARDOWN: u32 = 3;

/** Threshold of EPT faults without progress at which zero-step mitigation begins. Source: spec 7.8. */
export const ZERO_STEP_THRESHOLD: u32 = 6;

const SEPT_SIDE: u32 = 0xff00;
/** Side records of blocked entries: the level is part of the key, the value is the epoch they were blocked in, plus 1. */
function blockedKey(gfn: u64, level: i32): u64 {
  return sideKey(SEPT_SIDE + <u32>level, gfn);
}
/** Leaves blocked for one TRACK share their epoch, so that any number can be. */
function noteBlocked(gfn: u64, level: i32): void {
  if (sideHasRoom()) sideSetWide(blockedKey(gfn, level), ctl.tdEpoch + 1);
  else ctl.septBatchEpoch = ctl.tdEpoch + 1;
}
function blockedEpoch(gfn: u64, level: i32): u64 {
  const noted = sideGetWide(blockedKey(gfn, level));
  return (noted != 0 ? noted : ctl.septBatchEpoch) - 1;
}

export function septLevel(): i32 {
  return <i32>ctl.rootLevel + 1;
}

/** Gives the TD its root page. */
export function septInit(): void {
  setUniform(SEPT_TREE, septLevel(), <i32>ctl.rootLevel, 0);
}

/** The flags of the S-EPT leaf that maps `gfn` (0: FREE); atLevel is the level of the entry met. */
export function septFlags(gfn: u64): u32 {
  treeLook(SEPT_TREE, septLevel(), gfn);
  return atFlags;
}

/** Whether a blocked table (NL_BLOCKED) stands above `gfn`. */
export function septUnderBlockedTable(gfn: u64): bool {
  if (ctl.septTablesBlocked == 0) return false;
  for (let level = 2; level <= <i32>ctl.rootLevel; level++) {
    if (tableBlocked(gfn, level)) return true;
  }
  return false;
}
/** Whether the entry of `level` at `gfn` links a table that is blocked. */
export function tableBlocked(gfn: u64, level: i32): bool {
  return ctl.septTablesBlocked != 0 && sideGetWide(blockedKey(gfn & ~(pagesOf(level) - 1), level)) != 0;
}

function counterOf(leaf: u32): i32 {
  switch (leaf) {
    case SEPT_ADD:
      return C_SEPT_ADD;
    case PAGE_ADD:
      return C_PAGE_ADD;
    case PAGE_AUG:
      return C_PAGE_AUG;
    case RANGE_BLOCK:
      return C_RANGE_BLOCK;
    case TRACK:
      return C_TRACK;
    case PAGE_REMOVE:
      return C_PAGE_REMOVE;
    case PAGE_DEMOTE:
      return C_PAGE_DEMOTE;
    case PAGE_PROMOTE:
      return C_PAGE_PROMOTE;
    case PAGE_ACCEPT:
      return C_ACCEPT_CALLS;
    case PAGE_RECLAIM:
      return C_PAGE_RECLAIM;
    case PAGE_WBINVD:
      return C_PAGE_WBINVD;
    default:
      // MR.EXTEND to KEY.FREEID stand side by side, in this order.
      return C_MR_EXTEND + <i32>(leaf - MR_EXTEND);
  }
}

/** Counts and traces `times` calls of `leaf` that ended alike. Returns `status`. */
export function seamcall(leaf: u32, gfn: u64, level: i32, status: u32, times: u64): u32 {
  count(counterOf(leaf), times);
  if (status != TDX_SUCCESS) {
    const ptr = SEAMCALL_STATUS_BASE + ((<usize>(leaf * STATUSES + status)) << 3);
    store<u64>(ptr, load<u64>(ptr) + times);
    if (status != TDX_EXIT_EPT_VIOLATION) count(C_SEAMCALL_ERRORS, times);
  }
  if (ctl.traceOn != 0) trace(EV_SEAMCALL, leaf | (status << 6) | ((<u32>level) << 12), <u32>times, gfn);
  return status;
}

/** Whether the caller asked for this call to fail; takes one of the failures asked for. Returns the status, or success. */
function injected(leaf: u32): u32 {
  if (ctl.injectTimes == 0 || ctl.injectLeaf != leaf) return TDX_SUCCESS;
  if (ctl.injectSkip != 0) {
    ctl.injectSkip--;
    return TDX_SUCCESS;
  }
  ctl.injectTimes--;
  return ctl.injectStatus;
}

// The S-EPT's locks, as far as they make a call fail. septLock: bit 31 = held exclusively, else how many share it.
const EXCLUSIVE: u32 = 0x80000000;

/** Whether a call that shares the tree lock, and takes the lock of the entry of `gfn`, finds either taken. */
function sharedBusy(gfn: u64): bool {
  if (ctl.septLock & EXCLUSIVE) return true;
  if (ctl.acceptsBegun == 0) return false;
  for (let index: u32 = 0; index < ctl.vcpuCount; index++) {
    const vcpu = vcpuAt(index);
    if (vcpu.acceptLevel != 0 && ((vcpu.acceptGfn ^ gfn) & ~(pagesOf(<i32>vcpu.acceptLevel) - 1)) == 0) return true;
  }
  return false;
}

/**
 * `times` calls of `leaf`, which has nothing to check here. Returns how many failed; `lastFailure` is the status of the last
 * of them.
 */
export let lastFailure: u32 = 0;
export function plainSeamcalls(leaf: u32, gfn: u64, level: i32, times: u64): u64 {
  if (ctl.injectTimes == 0 || ctl.injectLeaf != leaf) {
    seamcall(leaf, gfn, level, TDX_SUCCESS, times);
    return 0;
  }
  let failed: u64 = 0;
  for (let call: u64 = 0; call < times; call++) {
    const status = seamcall(leaf, gfn, level, injected(leaf), 1);
    if (status == TDX_SUCCESS) continue;
    failed++;
    lastFailure = status;
  }
  return failed;
}

/**
 * Whether every bulk operation may skip the steps of single calls: nothing is blocked, locked or asked to fail, and the
 * mirror is what the S-EPT is.
 */
export function septQuiet(): bool {
  return (
    ctl.injectTimes == 0 &&
    ctl.septDiverged == 0 &&
    ctl.septLock == 0 &&
    ctl.septBlocked == 0 &&
    ctl.septTablesBlocked == 0 &&
    readersOf(ctl.tdEpoch - 1) == 0
  );
}

// --- Building the tree -----------------------------------------------------------------------------------------------

/** TDH.MEM.SEPT.ADD: links a table whose entries are of `level` into the entry above, at `gfn`. */
export function tdhMemSeptAdd(gfn: u64, level: i32): u32 {
  let status = injected(SEPT_ADD);
  if (status == TDX_SUCCESS && sharedBusy(gfn)) status = TDX_OPERAND_BUSY;
  if (status == TDX_SUCCESS && !operandValid(gfn, level + 1, <i32>ctl.rootLevel)) status = TDX_OPERAND_INVALID;
  if (status == TDX_SUCCESS && level < 1) status = TDX_OPERAND_INVALID;
  if (status == TDX_SUCCESS && ctl.tdState == TD_TEARDOWN) status = TDX_OP_STATE_INCORRECT;
  if (status == TDX_SUCCESS) {
    treeLook(SEPT_TREE, septLevel(), gfn);
    const reached = atLevel;
    if (septUnderBlockedTable(gfn) || reached > level + 1) status = TDX_EPT_WALK_FAILED;
    else if (reached < level + 1 || (atFlags & SEPT_PRESENT) != 0) status = TDX_EPT_ENTRY_STATE_INCORRECT;
  }
  if (status == TDX_SUCCESS) linkTo(gfn, level);
  return seamcall(SEPT_ADD, gfn, level + 1, status, 1);
}

/** Links tables so that entries of `level` exist at `gfn`. */
function linkTo(gfn: u64, level: i32): usize {
  let entry = SEPT_TREE;
  let at = septLevel();
  while (at > level + 1) {
    ensureTable(entry, at);
    at--;
    entry = childPtr(entry, indexAt(gfn, at));
  }
  if (tagOf(entry) == EMPTY) setUniform(entry, at, level, 0);
  return entry;
}

/** The state checks that PAGE.ADD and PAGE.AUG share. */
function canMap(gfn: u64, level: i32): u32 {
  if (sharedBusy(gfn)) return TDX_OPERAND_BUSY;
  if (septUnderBlockedTable(gfn)) return TDX_EPT_WALK_FAILED;
  treeLook(SEPT_TREE, septLevel(), gfn);
  const reached = atLevel;
  if (reached > level) return atFlags & SEPT_PRESENT ? TDX_EPT_ENTRY_STATE_INCORRECT : TDX_EPT_WALK_FAILED;
  return reached < level || (atFlags & SEPT_PRESENT) != 0 ? TDX_EPT_ENTRY_STATE_INCORRECT : TDX_SUCCESS;
}

/** Whether `gfn` is a gfn of the TD's private half, aligned to `level`. */
function operandValid(gfn: u64, level: i32, highest: i32): bool {
  return level >= 1 && level <= highest && (gfn & (pagesOf(level) - 1)) == 0 && gfn < ctl.directBits;
}

/** TDH.MEM.PAGE.AUG of a page that is `owned` or free in the PAMT: the leaf becomes PENDING. */
export function tdhMemPageAug(gfn: u64, level: i32, owned: bool): u32 {
  let status = injected(PAGE_AUG);
  if (status == TDX_SUCCESS && !operandValid(gfn, level, 2)) status = TDX_OPERAND_INVALID;
  if (status == TDX_SUCCESS && ctl.tdState != TD_RUNNABLE) status = TDX_OP_STATE_INCORRECT;
  if (status == TDX_SUCCESS) status = canMap(gfn, level);
  if (status == TDX_SUCCESS && owned) status = TDX_PAGE_METADATA_INCORRECT;
  if (status == TDX_SUCCESS) {
    treeSet(SEPT_TREE, septLevel(), gfn, gfn + pagesOf(level), level, SEPT_PRESENT | SEPT_PENDING);
  }
  return seamcall(PAGE_AUG, gfn, level, status, 1);
}

/** TDH.MEM.PAGE.ADD, before the TD is finalized: the leaf becomes MAPPED. */
export function tdhMemPageAdd(gfn: u64, level: i32, owned: bool): u32 {
  let status = injected(PAGE_ADD);
  if (status == TDX_SUCCESS && !operandValid(gfn, level, 1)) status = TDX_OPERAND_INVALID;
  if (status == TDX_SUCCESS && ctl.tdState != TD_BUILD) status = TDX_OP_STATE_INCORRECT;
  if (status == TDX_SUCCESS) status = canMap(gfn, level);
  if (status == TDX_SUCCESS && owned) status = TDX_PAGE_METADATA_INCORRECT;
  if (status == TDX_SUCCESS) treeSet(SEPT_TREE, septLevel(), gfn, gfn + 1, 1, SEPT_PRESENT);
  return seamcall(PAGE_ADD, gfn, level, status, 1);
}

/**
 * As many PAGE.AUG (PAGE.ADD while the TD is built) as [startGfn, endGfn) has pages of `level`, and the SEPT.ADD that they
 * need. Requires: septQuiet(), nothing mapped there, reserve() for two boundary paths.
 */
export function septMapRun(startGfn: u64, endGfn: u64, level: i32): void {
  const flags = ctl.tdState == TD_BUILD ? SEPT_PRESENT : SEPT_PRESENT | SEPT_PENDING;
  resetLinked();
  treeSet(SEPT_TREE, septLevel(), startGfn, endGfn, level, flags);
  if (linked > 0) seamcall(SEPT_ADD, startGfn, level + 1, TDX_SUCCESS, <u64>linked);
  const pages = (endGfn - startGfn) / pagesOf(level);
  seamcall(ctl.tdState == TD_BUILD ? PAGE_ADD : PAGE_AUG, startGfn, level, TDX_SUCCESS, pages);
}

// --- Blocking, tracking, removing ------------------------------------------------------------------------------------

/** TDH.MEM.RANGE.BLOCK of the entry of `level` at `gfn`: a leaf, or a table with all below it. */
export function tdhMemRangeBlock(gfn: u64, level: i32): u32 {
  let status = injected(RANGE_BLOCK);
  // The one call that wants the tree to itself.
  if (status == TDX_SUCCESS && ctl.septLock != 0) status = TDX_OPERAND_BUSY;
  if (status == TDX_SUCCESS && !operandValid(gfn, level, <i32>ctl.rootLevel - 1)) status = TDX_OPERAND_INVALID;
  if (status == TDX_SUCCESS && ctl.tdState == TD_TEARDOWN) status = TDX_OP_STATE_INCORRECT;
  if (status == TDX_SUCCESS) {
    treeLook(SEPT_TREE, septLevel(), gfn);
    const reached = atLevel;
    const flags = atFlags;
    if (septUnderBlockedTableAbove(gfn, level) || reached > level) {
      status = (flags & SEPT_PRESENT) != 0 ? TDX_EPT_ENTRY_STATE_INCORRECT : TDX_EPT_WALK_FAILED;
    } else if (reached < level) {
      // A table stands here.
      if (tableBlocked(gfn, level)) status = TDX_GPA_RANGE_ALREADY_BLOCKED;
      else {
        sideSetWide(blockedKey(gfn, level), ctl.tdEpoch + 1);
        ctl.septTablesBlocked++;
      }
    } else if ((flags & SEPT_PRESENT) == 0) status = TDX_EPT_ENTRY_STATE_INCORRECT;
    else if ((flags & SEPT_BLOCKED) != 0) status = TDX_GPA_RANGE_ALREADY_BLOCKED;
    else {
      treeModify(SEPT_TREE, septLevel(), gfn, gfn + pagesOf(level), SEPT_PRESENT, 0, SEPT_BLOCKED);
      noteBlocked(gfn, level);
      ctl.septBlocked++;
    }
  }
  return seamcall(RANGE_BLOCK, gfn, level, status, 1);
}

function septUnderBlockedTableAbove(gfn: u64, level: i32): bool {
  if (ctl.septTablesBlocked == 0) return false;
  for (let at = level + 1; at <= <i32>ctl.rootLevel; at++) if (tableBlocked(gfn, at)) return true;
  return false;
}

/** Takes the mark of BLOCKED from a leaf, or from a table, and forgets its epoch. */
function unblock(gfn: u64, level: i32, isTable: bool): void {
  sideDelete(blockedKey(gfn, level));
  if (isTable) {
    ctl.septTablesBlocked--;
    return;
  }
  ctl.septBlocked--;
  treeModify(SEPT_TREE, septLevel(), gfn, gfn + pagesOf(level), SEPT_PRESENT, SEPT_BLOCKED, 0);
}

/** vCPUs inside the TD that entered in `epoch` (of the two that can have any). */
function readersOf(epoch: u64): u32 {
  return epoch & 1 ? ctl.epochReaders1 : ctl.epochReaders0;
}
function addReader(epoch: u64, by: i32): void {
  if (epoch & 1) ctl.epochReaders1 += <u32>by;
  else ctl.epochReaders0 += <u32>by;
}

/** Whether no translation made before the entry was blocked can still be in a TLB (spec 7.2). */
function tracked(epoch: u64): bool {
  if (epoch + 1 < ctl.tdEpoch) return true;
  return epoch + 1 == ctl.tdEpoch && readersOf(epoch) == 0;
}

/** TDH.MEM.TRACK: the next epoch begins. */
export function tdhMemTrack(): u32 {
  let status = injected(TRACK);
  if (status == TDX_SUCCESS && ctl.tdState != TD_RUNNABLE) status = TDX_OP_STATE_INCORRECT;
  if (status == TDX_SUCCESS && readersOf(ctl.tdEpoch - 1) != 0) status = TDX_PREVIOUS_TLB_EPOCH_BUSY;
  if (status == TDX_SUCCESS) ctl.tdEpoch++;
  return seamcall(TRACK, 0, 0, status, 1);
}

/** The common half of REMOVE, DEMOTE and PROMOTE: is the entry blocked, and were the TLBs flushed since? */
function blockedAndTracked(gfn: u64, level: i32, isBlocked: bool): u32 {
  if (ctl.tdState != TD_RUNNABLE) return TDX_SUCCESS;
  if (!isBlocked) return TDX_GPA_RANGE_NOT_BLOCKED;
  return tracked(blockedEpoch(gfn, level)) ? TDX_SUCCESS : TDX_TLB_TRACKING_NOT_DONE;
}

/** TDH.MEM.PAGE.REMOVE of a leaf: FREE afterwards. `removedPending` says whether it was PENDING. */
export let removedPending: bool = false;
export function tdhMemPageRemove(gfn: u64, level: i32): u32 {
  let status = injected(PAGE_REMOVE);
  if (status == TDX_SUCCESS && sharedBusy(gfn)) status = TDX_OPERAND_BUSY;
  if (status == TDX_SUCCESS && !operandValid(gfn, level, 3)) status = TDX_OPERAND_INVALID;
  if (status == TDX_SUCCESS && ctl.tdState == TD_TEARDOWN) status = TDX_OP_STATE_INCORRECT;
  if (status == TDX_SUCCESS) {
    const flags = septFlags(gfn);
    const reached = atLevel;
    if (reached > level && (flags & SEPT_PRESENT) == 0) status = TDX_EPT_WALK_FAILED;
    else if (reached != level || (flags & SEPT_PRESENT) == 0) status = TDX_EPT_ENTRY_STATE_INCORRECT;
    else status = blockedAndTracked(gfn, level, (flags & SEPT_BLOCKED) != 0);
    if (status == TDX_SUCCESS) {
      removedPending = (flags & SEPT_PENDING) != 0;
      if (flags & SEPT_BLOCKED) unblock(gfn, level, false);
      clearLeafs(SEPT_TREE, septLevel(), gfn, gfn + pagesOf(level));
    }
  }
  return seamcall(PAGE_REMOVE, gfn, level, status, 1);
}

/** What septClear() found: leaves by level, and the gfns among them that were not PENDING. */
export let cleared4k: u64 = 0;
export let cleared2m: u64 = 0;
export let clearedAccepted: u64 = 0;

/**
 * Makes every leaf of [startGfn, endGfn) FREE, tables stay; huge leaves at the ends go whole. Requires: septQuiet(), or a
 * TD in teardown; reserve() for two boundary paths.
 */
export function septClear(startGfn: u64, endGfn: u64): void {
  cleared4k = 0;
  cleared2m = 0;
  clearedAccepted = 0;
  clearLeafs(SEPT_TREE, septLevel(), startGfn, endGfn);
}

function clearedLeafs(level: i32, leafs: u64, flags: u32): void {
  if (level == 1) cleared4k += leafs;
  else cleared2m += leafs * (level == 2 ? 1 : 512);
  if ((flags & SEPT_PENDING) == 0) clearedAccepted += leafs * pagesOf(level);
}

function clearLeafs(entryPtr: usize, level: i32, start: u64, end: u64): void {
  const tag = tagOf(entryPtr);
  if (tag == EMPTY || start >= end) return;
  if (tag == LT) {
    const from = <i32>(start & 511);
    const to = <i32>((end - 1) & 511) + 1;
    const pending = ltCount(entryPtr, from, to, SEPT_PRESENT | SEPT_PENDING);
    const gone = ltClear(entryPtr, from, to);
    cleared4k += <u64>gone;
    clearedAccepted += <u64>(gone - pending);
    return;
  }
  const flags = flagsOf(entryPtr);
  if (tag == LEAF) {
    clearedLeafs(level, 1, flags);
    setEmpty(entryPtr);
    return;
  }
  if (tag == UNIFORM) {
    if ((flags & SEPT_PRESENT) == 0) return;
    const leafLevel = leafLevelOf(entryPtr);
    const base = start & ~(pagesOf(level) - 1);
    const reach = pagesOf(leafLevel) - 1;
    if ((start & ~reach) == base && ((end + reach) & ~reach) == base + pagesOf(level)) {
      clearedLeafs(leafLevel, pagesOf(level) / pagesOf(leafLevel), flags);
      setUniform(entryPtr, level, leafLevel, 0);
      return;
    }
    expand(entryPtr, level);
  }
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    clearLeafs(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next);
    at = next;
  }
  fold(entryPtr, level, start);
}

/** As many epochs as `tracks` successful TRACKs, each followed by all vCPUs inside leaving and coming back. */
export function septTrackRun(tracks: u64, inside: u32): void {
  const before = ctl.tdEpoch;
  addReader(before, -(<i32>inside));
  ctl.tdEpoch = before + tracks;
  addReader(ctl.tdEpoch, <i32>inside);
  for (let index: u32 = 0; inside != 0 && index < ctl.vcpuCount; index++) {
    const vcpu = vcpuAt(index);
    if (vcpu.inTd != 0) vcpu.tdEpoch = ctl.tdEpoch;
  }
  count(C_VP_ENTER, tracks * <u64>inside);
  count(C_TD_TLB_FLUSHES, tracks * <u64>inside);
}

// --- Page sizes ------------------------------------------------------------------------------------------------------

/** TDH.MEM.PAGE.DEMOTE of the blocked leaf of `level` at `gfn`: 512 children of the same state, not blocked. */
export function tdhMemPageDemote(gfn: u64, level: i32): u32 {
  let status = injected(PAGE_DEMOTE);
  if (status == TDX_SUCCESS && sharedBusy(gfn)) status = TDX_OPERAND_BUSY;
  if (status == TDX_SUCCESS && (level < 2 || !operandValid(gfn, level, 3))) status = TDX_OPERAND_INVALID;
  if (status == TDX_SUCCESS && ctl.tdState == TD_TEARDOWN) status = TDX_OP_STATE_INCORRECT;
  if (status == TDX_SUCCESS) {
    const flags = septFlags(gfn);
    if (atLevel != level || (flags & SEPT_PRESENT) == 0) status = TDX_EPT_ENTRY_STATE_INCORRECT;
    else status = blockedAndTracked(gfn, level, (flags & SEPT_BLOCKED) != 0);
    if (status == TDX_SUCCESS) {
      if (flags & SEPT_BLOCKED) unblock(gfn, level, false);
      splitSept(gfn, level, flags & ~SEPT_BLOCKED);
    }
  }
  return seamcall(PAGE_DEMOTE, gfn, level, status, 1);
}

/** The entry of `level` for `gfn`, which exists. */
function entryAt(gfn: u64, level: i32): usize {
  let entry = SEPT_TREE;
  let at = septLevel();
  while (at > level) {
    if (tagOf(entry) == UNIFORM) expand(entry, at);
    at--;
    entry = childPtr(entry, indexAt(gfn, at));
  }
  return entry;
}

function splitSept(gfn: u64, level: i32, flags: u32): void {
  setUniform(entryAt(gfn, level), level, level - 1, flags);
}

/** TDH.MEM.PAGE.PROMOTE of the blocked table below the entry of `level` at `gfn`. */
export function tdhMemPagePromote(gfn: u64, level: i32): u32 {
  let status = injected(PAGE_PROMOTE);
  if (status == TDX_SUCCESS && ctl.septLock != 0) status = TDX_OPERAND_BUSY;
  if (status == TDX_SUCCESS && (level < 2 || !operandValid(gfn, level, 3))) status = TDX_OPERAND_INVALID;
  if (status == TDX_SUCCESS && ctl.tdState == TD_TEARDOWN) status = TDX_OP_STATE_INCORRECT;
  if (status == TDX_SUCCESS) {
    treeLook(SEPT_TREE, septLevel(), gfn);
    if (atLevel >= level) status = atLevel > level ? TDX_EPT_WALK_FAILED : TDX_EPT_ENTRY_STATE_INCORRECT;
    else status = blockedAndTracked(gfn, level, tableBlocked(gfn, level));
    if (status == TDX_SUCCESS) {
      const end = gfn + pagesOf(level);
      const pages = pagesOf(level);
      const present = treeCount(SEPT_TREE, septLevel(), gfn, end, SEPT_PRESENT);
      const pending = treeCount(SEPT_TREE, septLevel(), gfn, end, SEPT_PRESENT | SEPT_PENDING);
      const blocked = treeCount(SEPT_TREE, septLevel(), gfn, end, SEPT_PRESENT | SEPT_BLOCKED);
      const alike = present == pages && (pending == 0 || pending == pages) && blocked == 0;
      if (!alike || !childrenAre(gfn, level)) status = TDX_EPT_ENTRY_STATE_INCORRECT;
      else {
        if (tableBlocked(gfn, level)) unblock(gfn, level, true);
        const entry = entryAt(gfn, level);
        freeSubtree(entry, level);
        setLeaf(entry, level, pending == 0 ? SEPT_PRESENT : SEPT_PRESENT | SEPT_PENDING);
      }
    }
  }
  return seamcall(PAGE_PROMOTE, gfn, level, status, 1);
}

/** Whether the 512 entries below the entry of `level` at `gfn` are all leaves of the level below. */
function childrenAre(gfn: u64, level: i32): bool {
  const pages = pagesOf(level - 1);
  for (let index: u64 = 0; index < 512; index++) {
    treeLook(SEPT_TREE, septLevel(), gfn + index * pages);
    const reached = atLevel;
    if (reached != level - 1) return false;
    if (reached == 1) return true;
  }
  return true;
}

// --- What the guest calls --------------------------------------------------------------------------------------------

/** TDG.MEM.PAGE.ACCEPT of the page of `level` at `gfn`. */
export function tdgMemPageAccept(gfn: u64, level: i32): u32 {
  let status = injected(PAGE_ACCEPT);
  if (status == TDX_SUCCESS && !operandValid(gfn, level, 2)) status = TDX_OPERAND_INVALID;
  if (status == TDX_SUCCESS && sharedBusy(gfn)) status = TDX_OPERAND_BUSY;
  if (status == TDX_SUCCESS) status = acceptState(gfn, level);
  if (status == TDX_SUCCESS) {
    treeModify(SEPT_TREE, septLevel(), gfn, gfn + pagesOf(level), SEPT_PRESENT | SEPT_PENDING, SEPT_PENDING, 0);
  }
  return seamcall(PAGE_ACCEPT, gfn, level, status, 1);
}

/** What an ACCEPT of the page of `level` at `gfn` would end with, by the state of the entry alone. */
function acceptState(gfn: u64, level: i32): u32 {
  if (septUnderBlockedTable(gfn)) return TDX_EXIT_EPT_VIOLATION;
  const flags = septFlags(gfn);
  const reached = atLevel;
  if (reached < level) return TDX_PAGE_SIZE_MISMATCH;
  if ((flags & SEPT_PRESENT) == 0 || (flags & SEPT_BLOCKED) != 0) return TDX_EXIT_EPT_VIOLATION;
  if ((flags & SEPT_PENDING) == 0) return TDX_PAGE_ALREADY_ACCEPTED;
  return reached > level ? TDX_EXIT_EPT_VIOLATION : TDX_SUCCESS;
}

/** Makes the PENDING pages of [startGfn, endGfn), alike and of `level`, MAPPED: one ACCEPT each. Requires: septQuiet(). */
export function septAcceptRun(startGfn: u64, endGfn: u64, level: i32): void {
  treeModify(SEPT_TREE, septLevel(), startGfn, endGfn, SEPT_PRESENT | SEPT_PENDING, SEPT_PENDING, 0);
  seamcall(PAGE_ACCEPT, startGfn, level, TDX_SUCCESS, (endGfn - startGfn) / pagesOf(level));
}

/**
 * TDH.VP.ENTER: counts the vCPU among the readers of the epoch and drops its private translations if they are older.
 * Under zero-step mitigation it looks at the faulting gpas first, with the tree to itself.
 */
export function tdhVpEnter(vcpu: Vcpu): u32 {
  let status = injected(VP_ENTER);
  if (status == TDX_SUCCESS && ctl.tdState != TD_RUNNABLE) status = TDX_OP_STATE_INCORRECT;
  if (status == TDX_SUCCESS && vcpu.eptFaults >= ZERO_STEP_THRESHOLD) {
    count(C_ZERO_STEP_CHECKS, 1);
    if (ctl.septLock != 0) status = TDX_OPERAND_BUSY;
  }
  if (status == TDX_SUCCESS) {
    if (vcpu.tdEpoch != ctl.tdEpoch) count(C_TD_TLB_FLUSHES, 1);
    vcpu.tdEpoch = ctl.tdEpoch;
    vcpu.inTd = 1;
    addReader(ctl.tdEpoch, 1);
  }
  return seamcall(VP_ENTER, 0, 0, status, 1);
}

/** Any way out of the guest. */
export function tdExit(vcpu: Vcpu): void {
  if (vcpu.inTd == 0) return;
  vcpu.inTd = 0;
  addReader(vcpu.tdEpoch, -1);
}

/** Takes and gives back the tree, as another party of the module would. */
export function septLockExclusive(): bool {
  if (ctl.septLock != 0) return false;
  ctl.septLock = EXCLUSIVE;
  return true;
}
export function septUnlockExclusive(): void {
  ctl.septLock = 0;
}
export function septLockShared(): bool {
  if (ctl.septLock & EXCLUSIVE) return false;
  ctl.septLock++;
  return true;
}
export function septUnlockShared(): void {
  ctl.septLock--;
}
