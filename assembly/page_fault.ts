// A fault in two phases: take the sequence number and the page, then install or learn that it went stale.
//
// One record holds a fault between its phases, so that an invalidation can be placed there. A run of faults that would
// all end alike is carried out at once (extendRun), which is what lets a terabyte be pre-faulted.
// Mirrors: arch/x86/kvm/mmu/mmu.c (kvm_mmu_faultin_pfn, kvm_mmu_hugepage_adjust, kvm_tdp_mmu_page_fault),
// arch/x86/kvm/mmu/spte.c (make_spte). Left out: write tracking, access tracking without A/D bits, async faults.

import { attributesRunEnd } from './attributes';
import { LEAF_GROWTH_BLOCKS, reserve } from './blocks';
import {
  C_PF_FIXED,
  C_PF_MMIO_SPTE_CREATED,
  C_PF_TAKEN,
  C_RETRIES_FROZEN,
  C_RETRIES_HULL,
  C_RETRIES_SEQ,
  C_RETRIES_SLOT_INVALID,
  count,
  ctl,
  FORM_GMEM_IN_PLACE,
  hasPrivateMem,
  PROFILE_6_16,
  STALE_TREE,
  VM_SNP,
  VM_SW_PROTECTED,
  VM_TDX,
} from './control';
import { markPagesDirty } from './dirty_log';
import { LT, pagesOf, sideCount, tagOf, UNIFORM } from './entry';
import { Fault } from './faults';
import { gmemGetPfn, gmemHasHugeBlock, gmemLevel, gmemRunPages } from './guest_memfd';
import { hostFault, hostFaultPlain, hostLevel, hostRunPages, hostWritable } from './host_mm';
import { mmuInvalidateRetryGfn, mmuInvalidateRetryGfnUnsafe } from './invalidate';
import { QUAD_BLOCKS, UPPER_BLOCKS } from './layout';
import { ltRunEnd } from './leaf_table';
import { allowedLevel } from './mapping_level';
import { memIsPrivate } from './mem_attributes';
import {
  endGfnOf,
  gfnToMemslot,
  MEM_GUEST_MEMFD,
  MEM_LOG_DIRTY_PAGES,
  MEM_READONLY,
  Memslot,
  memslotAt,
} from './memslots';
import { atEnd, atFlags, atLevel, atTag, treeFlags } from './page_table';
import { sideHasRoom } from './side';
import { ACCESSED, HOST_WRITABLE, KIND, MMU_WRITABLE, NX, PRESENT, WRITABLE } from './spte';
import { EFAULT, EIO } from './status';
import {
  keyBitsOf,
  mappedNewFlags,
  mappedOldFlags,
  mappedOverTable,
  maxGfnExclusive,
  newLeafFlags,
  RET_PF_BUG,
  RET_PF_EMULATE,
  RET_PF_FIXED,
  RET_PF_FROZEN,
  RET_PF_RETRY,
  RET_PF_SPURIOUS,
  ROOT_DIRECT,
  ROOT_MIRROR,
  Root,
  rootAt,
  tdpMmuChildFlags,
  tdpMmuCountFault,
  tdpMmuCountFaults,
  tdpMmuFreeze,
  tdpMmuIsFrozen,
  tdpMmuLinkTable,
  tdpMmuLook,
  tdpMmuMap,
  tdpMmuMapAbsent,
  tdpMmuMapMmio,
  tdpMmuMapRun,
  tdpMmuNxDisallowed,
  tdpMmuSideCode,
  tdpMmuSplitMirror,
  tdpMmuSplitTo,
  tdpMmuThaw,
  tdpMmuWalk,
} from './tdp_mmu';
import { tdxGuestInhibit, tdxGuestInhibits, tdxSeptLink, tdxSeptSet, tdxSeptSetRun, tdxSeptSplit } from './tdx';
import { septQuiet, TD_BUILD, TDX_OPERAND_BUSY, TDX_SUCCESS } from './tdx_module';
import { codeOfMmio, EV_MARK_MMIO_SPTE, setByVcpu, trace } from './trace';
import { Vcpu, vcpuAt } from './vcpus';

export const ACCESS_READ: u32 = 0;
export const ACCESS_WRITE: u32 = 1;
export const ACCESS_EXEC: u32 = 2;

/** kvm_exit_reason KVM_EXIT_MEMORY_FAULT: the fault's gfn, whether the access was private. */
export const RET_PF_MEMORY_FAULT: i32 = 7;
/** The lookup went well: a page is at hand. */
const CONTINUE: i32 = 0;

/** The shared-bit-free gfn of an address, and whether it is private for `privateMode` (0 no, 1 yes, 2 as the attribute). */
export function initFault(fault: Fault, vcpu: u32, gfn: u64, access: u32, privateMode: u32, prefetch: bool): void {
  fault.vcpu = vcpu;
  fault.access = access;
  fault.prefetch = prefetch ? 1 : 0;
  fault.gfn = gfn;
  fault.limitPages = 1;
  if (!hasPrivateMem()) fault.isPrivate = 0;
  else if (privateMode == 2 || ctl.vmType == VM_SW_PROTECTED) fault.isPrivate = memIsPrivate(gfn) ? 1 : 0;
  else fault.isPrivate = privateMode;
}

/**
 * Reserves what one fault, with the run that follows it, may need in all the stores it touches: page tables, host page
 * table, contents, dirty bitmap; and, if the host replaces the page, two events in each slot that shows it.
 */
export function reserveFault(): bool {
  // The RMP's tree has as many levels as that of the pages; an RMP fault zaps two cuts more.
  const forRmp: u32 = ctl.vmType == VM_SNP ? 40 : 0;
  // The accepts under way end where a split kicks their vCPUs.
  const accepts = ctl.acceptsBegun;
  const uppers = 64 + 16 * ctl.hvaAliases + 12 * accepts + forRmp;
  return sideHasRoom() && reserve(uppers, 24 + 8 * ctl.hvaAliases + 4 * accepts + forRmp / 4);
}

// Of what reserveFault() asks for at most, but for a TD: whatever there is, and for each alias of a page.
const FAULT_BLOCKS: u32 = 104 * UPPER_BLOCKS + 34 * <u32>LEAF_GROWTH_BLOCKS + 2 * QUAD_BLOCKS;
const ALIAS_BLOCKS: u32 = 16 * UPPER_BLOCKS + 8 * <u32>LEAF_GROWTH_BLOCKS;
/** Whether so much was never used that reserveFault() would hold: not of a TD, nor where a test counts reservations. */
export function reservesAnyFault(): bool {
  return sideHasRoom() && FAULT_BLOCKS + ALIAS_BLOCKS * ctl.hvaAliases <= ctl.arenaBlocks - ctl.arenaNext;
}

function slotOf(fault: Fault): Memslot {
  return memslotAt(fault.slotAs, fault.slotId);
}

/** How many of `limit` gfns from `gfn` on go the way of the first: its attribute, outside the hull, no leaf of another kind. */
function runLimit(fault: Fault, gfn: u64, limit: u64): u64 {
  if (ctl.invInProgress > 0 && gfn < ctl.invStart) limit = min(limit, ctl.invStart - gfn);
  if (!hasPrivateMem()) return limit;
  limit = attributesRunEnd(gfn, gfn + limit) - gfn;
  const root = rootOf(fault);
  if (fault.isPrivate != 0 && root !== null && root.kind == ROOT_DIRECT) {
    tdpMmuWalk(root, gfn);
    limit = min(limit, atEnd - gfn);
  }
  return limit;
}

function countRetry(gfn: u64): i32 {
  const inHull = ctl.invInProgress > 0 && gfn >= ctl.invStart && gfn < ctl.invEnd;
  count(inHull ? C_RETRIES_HULL : C_RETRIES_SEQ, 1);
  return RET_PF_RETRY;
}

/**
 * Takes the sequence number, checks attributes and slot, finds the page. Returns CONTINUE (0), RET_PF_RETRY,
 * RET_PF_EMULATE (no slot, or a write to a read-only one), RET_PF_MEMORY_FAULT or -errno.
 * Mirrors: kvm_mmu_faultin_pfn()
 */
function faultinPfn(fault: Fault): i32 {
  const vcpu = vcpuAt(fault.vcpu);
  const gfn = fault.gfn;
  fault.seq = ctl.invSeq;
  if (hasPrivateMem() && (fault.isPrivate != 0) != memIsPrivate(gfn)) {
    fault.error = -EFAULT;
    return RET_PF_MEMORY_FAULT;
  }
  const slot = gfnToMemslot(vcpu.asId, gfn);
  if (slot === null) {
    if (fault.isPrivate != 0) {
      fault.error = -EFAULT;
      return RET_PF_MEMORY_FAULT;
    }
    vcpu.mmioGfn = gfn;
    vcpu.mmioGeneration = ctl.mmioGen0;
    vcpu.mmioValid = 1;
    fault.hasSlot = 0;
    if (ctl.mmioCaching == 0 || gfn >= maxGfnExclusive(ctl.directBits)) return RET_PF_EMULATE;
    return CONTINUE;
  }
  fault.hasSlot = 1;
  fault.slotAs = slot.asId;
  fault.slotId = slot.id;
  if (slot.invalid != 0) {
    count(C_RETRIES_SLOT_INVALID, 1);
    return RET_PF_RETRY;
  }
  if (mmuInvalidateRetryGfnUnsafe(fault.seq, gfn)) return countRetry(gfn);
  let limit = min(<u64>fault.limitPages, endGfnOf(slot) - gfn);
  // Where a call may fail each page is asked for by itself.
  if (limit > 1 && fault.isPrivate != 0 && ctl.vmType == VM_TDX && !septQuiet()) limit = 1;
  // Each block of 2M is taken whole by its own first fault.
  if (fault.isPrivate != 0 && ctl.privateHugePages != 0) limit = min(limit, 512 - (gfn & 511));
  if (limit > 1) limit = runLimit(fault, gfn, limit);
  if (fault.isPrivate != 0 || (ctl.filterForm == FORM_GMEM_IN_PLACE && (slot.flags & MEM_GUEST_MEMFD) != 0)) {
    const error = gmemGetPfn(slot, gfn, limit, fault.isPrivate != 0);
    if (error != 0) {
      fault.error = error;
      return RET_PF_MEMORY_FAULT;
    }
    fault.hostLevel = <u32>gmemLevel;
    fault.hostWritable = 1;
    fault.runPages = gmemRunPages;
  } else {
    const write = fault.access == ACCESS_WRITE;
    const readOnly = (slot.flags & MEM_READONLY) != 0;
    if (write && readOnly) return RET_PF_EMULATE;
    const error = hostFault(slot.hva + ((gfn - slot.baseGfn) << 12), write, limit);
    if (error != 0) return error;
    fault.hostLevel = <u32>hostLevel;
    fault.hostWritable = hostWritable && !readOnly ? 1 : 0;
    fault.runPages = hostRunPages;
  }
  if (mmuInvalidateRetryGfnUnsafe(fault.seq, gfn)) return countRetry(gfn);
  return CONTINUE;
}

let requestedLevel: i32 = 1;
let hugeDisallowed: bool = false;
/** The level a fault goes to. Mirrors: kvm_mmu_hugepage_adjust(), disallowed_hugepage_adjust() */
function goalLevel(fault: Fault, slot: Memslot, root: Root): i32 {
  requestedLevel = 1;
  hugeDisallowed = fault.access == ACCESS_EXEC && ctl.nxHugePages != 0;
  if ((slot.flags & MEM_LOG_DIRTY_PAGES) != 0) return 1;
  if (fault.hostLevel > 1) requestedLevel = min(allowedLevel(slot, fault.gfn, 3), <i32>fault.hostLevel);
  if (requestedLevel == 1 || hugeDisallowed) return 1;
  let goal = requestedLevel;
  if (ctl.nxHugePages != 0) while (goal > 1 && tdpMmuNxDisallowed(root, fault.gfn, goal)) goal--;
  return goal;
}

/** The flags of a new leaf, D apart. Mirrors: make_spte() */
function leafFlags(fault: Fault, level: i32, isMirror: bool): u32 {
  let flags = PRESENT;
  if (fault.hostWritable != 0) flags |= WRITABLE | HOST_WRITABLE | MMU_WRITABLE;
  if (fault.prefetch == 0) flags |= ACCESSED;
  if (isMirror) return newLeafFlags(flags, false);
  if (level > 1 && ctl.nxHugePages != 0) flags |= NX;
  if (fault.isPrivate != 0) flags |= KIND;
  return flags;
}

/** Whether a present leaf with `flags` lets the access through. */
export function accessAllowed(flags: u32, access: u32): bool {
  if (access == ACCESS_WRITE) return (flags & WRITABLE) != 0;
  return access != ACCESS_EXEC || (flags & NX) == 0;
}

/** The root that a fault goes to; null if the vCPU has none that is valid. */
function rootOf(fault: Fault): Root | null {
  const vcpu = vcpuAt(fault.vcpu);
  const loaded = ctl.vmType == VM_TDX && fault.isPrivate != 0 ? vcpu.mirrorRoot : vcpu.root;
  if (loaded == 0) return null;
  const root = rootAt(loaded - 1);
  return root.invalid != 0 ? null : root;
}

/**
 * Installs what faultinPfn() found, or learns that it is stale. On a mirror root stops once with RET_PF_FROZEN if
 * `stepwise`. Mirrors: kvm_tdp_mmu_page_fault(), tdp_mmu_map_handle_target_level()
 */
function install(fault: Fault, stepwise: bool): i32 {
  const gfn = fault.gfn;
  const root = rootOf(fault);
  if (root === null) return RET_PF_RETRY;
  if (fault.hasSlot != 0 && mmuInvalidateRetryGfn(fault.seq, gfn)) return countRetry(gfn);
  if (fault.hasSlot == 0) return installMmio(fault, root);
  const slot = slotOf(fault);
  const goal = goalLevel(fault, slot, root);
  if (tdpMmuIsFrozen(root, gfn)) {
    tdpMmuCountFault(1);
    count(C_RETRIES_FROZEN, 1);
    return RET_PF_RETRY;
  }
  if (root.kind == ROOT_MIRROR) return installMirror(fault, slot, root, stepwise);
  tdpMmuLook(root, gfn);
  const present = (atFlags & PRESENT) != 0;
  if (present && ctl.staleRecords != 0 && treeFlags(STALE_TREE, 7, gfn) != 0) return RET_PF_BUG;
  if (ctl.profile == PROFILE_6_16 && present && atLevel == goal) {
    // 6.16 looks before it rewrites.
    if (fault.prefetch != 0 || accessAllowed(atFlags, fault.access)) {
      fault.newFlags = atFlags;
      fault.runPages = pagesOf(goal) - (gfn & (pagesOf(goal) - 1));
      tdpMmuCountFault(goal);
      return RET_PF_SPURIOUS;
    }
  }
  if (ctl.profile == PROFILE_6_16 && present && atLevel > goal) {
    // What a split leaves at the goal may do already.
    const child = tdpMmuChildFlags(atFlags, atLevel, goal);
    if (fault.prefetch != 0 || accessAllowed(child, fault.access)) {
      tdpMmuSplitTo(root, gfn, goal, hugeDisallowed ? requestedLevel : 0);
      fault.newFlags = child;
      fault.runPages = pagesOf(goal) - (gfn & (pagesOf(goal) - 1));
      return RET_PF_SPURIOUS;
    }
  }
  const result = tdpMmuMap(root, gfn, goal, leafFlags(fault, goal, false), hugeDisallowed ? requestedLevel : 0);
  if (result == RET_PF_BUG) return result;
  // Writable sptes of a logged slot are dirty, whether or not this fault changed them.
  if ((mappedNewFlags & WRITABLE) != 0) markPagesDirty(slot, gfn, gfn + 1);
  if (result == RET_PF_FIXED || result == RET_PF_SPURIOUS) extendRun(fault, slot, root, goal);
  return result;
}

/**
 * After a pre-fault of one entry: maps as many entries behind it as would end alike, up to fault.runPages, and sets
 * runPages to the gfns that are now done.
 */
function extendRun(fault: Fault, slot: Memslot, root: Root, goal: i32): void {
  const pages = pagesOf(goal);
  const base = fault.gfn & ~(pages - 1);
  const first = base + pages;
  const oldFlags = mappedOldFlags;
  // An MMIO spte under the first entry kept its D clear: those behind it replace nothing.
  const newFlags = oldFlags & PRESENT ? mappedNewFlags : newLeafFlags(mappedNewFlags, false);
  let limit = min(fault.gfn + fault.runPages, fault.gfn + <u64>fault.limitPages);
  fault.runPages = first - fault.gfn;
  if (mappedOverTable || fault.limitPages <= pages || limit <= first) return;
  // A trace lists a table's link before its leaves: stay within the table that the first entry linked.
  if (ctl.traceOn != 0) limit = min(limit, (base & ~(pages * 512 - 1)) + pages * 512);
  limit &= ~(pages - 1);
  // Levels above the goal must stay forbidden: only what holds for the whole run may forbid them.
  if (goal == 1 && (slot.flags & MEM_LOG_DIRTY_PAGES) == 0 && fault.hostLevel > 1) return;
  if (goal > 1) {
    if (goal == 2 && fault.hostLevel > 2) return;
    let whole = first;
    while (whole < limit && allowedLevel(slot, whole, goal) == goal && !hugeMarked(root, whole, goal)) whole += pages;
    limit = whole;
  }
  let gfn = first;
  while (gfn < limit) {
    tdpMmuWalk(root, gfn);
    const alike = atFlags == oldFlags && (atFlags & PRESENT ? atLevel == goal : atLevel >= goal);
    if (!alike || (goal > 1 && atTag == LT)) break;
    if (goal > 1 && atTag >= UNIFORM && atLevel < goal) break;
    if (ctl.sideCount != 0 && goal == 1 && sideIn(root, gfn, min(limit, atEnd))) break;
    const end = min(limit, atEnd & ~keyBitsOf(root));
    if (end <= gfn) break;
    gfn = end;
  }
  if (gfn <= first) return;
  tdpMmuMapRun(root, first, gfn, goal, oldFlags, newFlags);
  if ((newFlags & WRITABLE) != 0) markPagesDirty(slot, first, gfn);
  fault.runPages = gfn - fault.gfn;
}

function hugeMarked(root: Root, gfn: u64, level: i32): bool {
  return ctl.nxHugePages != 0 && tdpMmuNxDisallowed(root, gfn, level);
}
/** Whether any entry of [startGfn, endGfn), a stretch of one leaf table, has a side record. */
function sideIn(root: Root, startGfn: u64, endGfn: u64): bool {
  if (endGfn - startGfn > 512) return false;
  for (let gfn = startGfn; gfn < endGfn; gfn++) if (tdpMmuSideCode(root, gfn) != 0) return true;
  return false;
}

/** The level of a private leaf of a TD: 2M as a profile of its own (spec 7.10), else 4K. */
function privateGoal(fault: Fault, slot: Memslot): i32 {
  const gfn = fault.gfn;
  if (ctl.privateHugePages == 0 || ctl.tdState == TD_BUILD || fault.acceptLevel == 1) return 1;
  return privateHugeAt(slot, gfn) ? 2 : 1;
}
function privateHugeAt(slot: Memslot, gfn: u64): bool {
  return !tdxGuestInhibits(gfn) && allowedLevel(slot, gfn, 2) == 2 && gmemHasHugeBlock(slot, gfn);
}

/** Installs in a mirror root, and beneath it: FROZEN first, then the module's call, then the value. */
function installMirror(fault: Fault, slot: Memslot, root: Root, stepwise: bool): i32 {
  const gfn = fault.gfn;
  if (fault.acceptLevel == 1 && ctl.privateHugePages != 0) tdxGuestInhibit(gfn);
  tdpMmuWalk(root, gfn);
  if (atFlags & PRESENT) {
    if (atLevel == 2 && fault.acceptLevel == 1) {
      tdpMmuCountFault(1);
      fault.runPages = 1;
      if (tdxSeptSplit(gfn & ~511) != TDX_SUCCESS) return RET_PF_BUG;
      tdpMmuSplitMirror(root, gfn);
      return RET_PF_FIXED;
    }
    fault.newFlags = atFlags;
    if (atLevel > 1) {
      fault.runPages = pagesOf(atLevel) - (gfn & (pagesOf(atLevel) - 1));
      tdpMmuCountFault(atLevel);
      return RET_PF_SPURIOUS;
    }
    // Present already: with all that follow in the run.
    const end = min(atEnd, gfn + min(fault.runPages, <u64>fault.limitPages));
    fault.runPages = max(end - gfn, 1);
    tdpMmuCountFaults(1, fault.runPages);
    return RET_PF_SPURIOUS;
  }
  // No promotion: where tables go down to 4K, leaves are 4K.
  const reached = atLevel;
  const goal = reached < 2 ? 1 : privateGoal(fault, slot);
  for (let level = reached - 1; level >= goal; level--) {
    const status = tdxSeptLink(gfn, level);
    if (status != TDX_SUCCESS) {
      // The walk ends at the entry that could not be linked.
      tdpMmuCountFault(level + 1);
      return status == TDX_OPERAND_BUSY ? RET_PF_RETRY : RET_PF_BUG;
    }
    tdpMmuLinkTable(root, gfn, level);
  }
  tdpMmuCountFault(goal);
  fault.goal = <u32>goal;
  fault.newFlags = leafFlags(fault, goal, true);
  tdpMmuFreeze(root, gfn, goal);
  if (stepwise) {
    ctl.frozenFaults++;
    return RET_PF_FROZEN;
  }
  const result = setMirror(fault, slot, root);
  if (result == RET_PF_FIXED) extendMirror(fault, root, goal);
  return result;
}

/** The module's call for a frozen entry, and the value that follows from it. */
function setMirror(fault: Fault, slot: Memslot, root: Root): i32 {
  const level = <i32>fault.goal;
  const status = tdxSeptSet(slot, fault.gfn & ~(pagesOf(level) - 1), level);
  tdpMmuThaw(root, fault.gfn, level, status == TDX_SUCCESS ? fault.newFlags : 0);
  if (status == TDX_OPERAND_BUSY) return RET_PF_RETRY;
  return status == TDX_SUCCESS ? RET_PF_FIXED : RET_PF_BUG;
}

/** As extendRun(), in a mirror root: the 4K pages of the run behind the first. */
function extendMirror(fault: Fault, root: Root, goal: i32): void {
  const gfn = fault.gfn;
  const pages = pagesOf(goal);
  const first = (gfn & ~(pages - 1)) + pages;
  let limit = gfn + min(fault.runPages, <u64>fault.limitPages);
  fault.runPages = first - gfn;
  // Of an accept of 2M only the first page was asked for: the guest goes down to 4K next.
  if (goal > 1 || fault.acceptLevel == 2 || !septQuiet()) return;
  // A trace lists a table's link before its leaves; while a TD is built, only linked tables can take a page.
  if (ctl.traceOn != 0 || ctl.tdState == TD_BUILD) limit = min(limit, (gfn | 511) + 1);
  let end = first;
  while (end < limit) {
    tdpMmuWalk(root, end);
    if ((atFlags & PRESENT) != 0 || (ctl.sideCount != 0 && sideIn(root, end, min(limit, atEnd)))) break;
    end = min(limit, atEnd);
  }
  if (end <= first) return;
  if (ctl.tdState == TD_BUILD) ctl.premapped += end - first;
  else tdxSeptSetRun(first, end, 1);
  tdpMmuMapRun(root, first, end, 1, 0, fault.newFlags);
  fault.runPages = end - gfn;
}

function installMmio(fault: Fault, root: Root): i32 {
  const vcpu = vcpuAt(fault.vcpu);
  const generation = vcpu.asId == 0 ? ctl.mmioGen0 : ctl.mmioGen1;
  // The tables of an exec fault are nx-disallowed although nothing is mapped through them; they count as no lost huge page.
  const nxLevel = fault.access == ACCESS_EXEC && ctl.nxHugePages != 0 ? 1 : 0;
  tdpMmuMapMmio(root, fault.gfn, codeOfMmio(generation), nxLevel);
  count(C_PF_MMIO_SPTE_CREATED, 1);
  trace(EV_MARK_MMIO_SPTE, 0, 0, fault.gfn);
  return RET_PF_EMULATE;
}

/** The first phase. Requires: initFault(), reserveFault(). Returns 0 to go on, or the result. */
export function faultBegin(fault: Fault): i32 {
  return faultinPfn(fault);
}

/** The second phase; faultThaw() is the third on a mirror root that froze. A BUG marks the VM dead and changes nothing. */
export function faultFinish(fault: Fault, stepwise: bool): i32 {
  setByVcpu(true);
  const result = bugOr(fault, install(fault, stepwise));
  setByVcpu(false);
  return result;
}

/** Both phases, one right after the other. Requires: initFault(), reserveFault(). */
export function faultAtOnce(fault: Fault): i32 {
  fault.stage = 1;
  let result = faultBegin(fault);
  if (result == 0) result = faultFinish(fault, false);
  fault.stage = 0;
  return result;
}

/**
 * Both phases of faults at `gfn` and the gfns behind it, at most `limit`, that change nothing but 4K leaves of a direct
 * root, host ptes and counters: without a record, and all alike. `entry` is the stored one that answers for `gfn`, as absent.
 * Returns how many were done. 0 where anything is out of the ordinary, and nothing was changed then: faultBegin() and
 * faultFinish() do every fault, and would have done these in the same way.
 * Requires: reserveFault().
 */
export function faultPlain(vcpu: Vcpu, entry: usize, gfn: u64, access: u32, privateMode: u32, limit: u64): u64 {
  if (tagOf(entry) != LT || sideCount(entry) != 0) return 0;
  if (ctl.traceOn != 0 || ctl.invInProgress != 0) return 0;
  if (hasPrivateMem() && (privateMode == 1 || memIsPrivate(gfn))) return 0;
  const slot = gfnToMemslot(vcpu.asId, gfn);
  if (slot === null || slot.invalid != 0 || (slot.flags & MEM_READONLY) != 0) return 0;
  if ((slot.flags & MEM_GUEST_MEMFD) != 0 && ctl.filterForm == FORM_GMEM_IN_PLACE) return 0;
  if (limit > 1) {
    const index = <i32>(gfn & 511);
    limit = min(limit, endGfnOf(slot) - gfn);
    limit = <u64>(ltRunEnd(entry, index, <i32>min(<u64>index + limit, 512)) - index);
    if (hasPrivateMem()) limit = attributesRunEnd(gfn, gfn + limit) - gfn;
  }
  const pages = hostFaultPlain(slot.hva + ((gfn - slot.baseGfn) << 12), access == ACCESS_WRITE, limit);
  if (pages == 0) return 0;
  const permission = hostWritable ? WRITABLE | HOST_WRITABLE | MMU_WRITABLE : 0;
  tdpMmuMapAbsent(entry, gfn, pages, PRESENT | ACCESSED | permission);
  if (hostWritable) markPagesDirty(slot, gfn, gfn + pages);
  count(C_PF_TAKEN, pages);
  count(C_PF_FIXED, pages);
  return pages;
}

function bugOr(fault: Fault, result: i32): i32 {
  if (result == RET_PF_BUG) {
    ctl.dead = 1;
    fault.error = -EIO;
    return -EIO;
  }
  return result;
}

/** The module's call returned: the frozen entry takes its leaf. */
export function faultThaw(fault: Fault): i32 {
  const root = rootOf(fault);
  ctl.frozenFaults--;
  if (root === null) return RET_PF_RETRY;
  setByVcpu(true);
  const result = bugOr(fault, setMirror(fault, slotOf(fault), root));
  setByVcpu(false);
  return result;
}
