// What a TD's guest asks for: to accept pages, to convert with MapGPA; and the two vCPU ioctls of the build phase.
// Mirrors: arch/x86/kvm/vmx/tdx.c (tdx_handle_ept_violation, tdx_map_gpa, tdx_vcpu_init_mem_region, tdx_td_finalize)

import {
  C_EXITS_HYPERCALL,
  C_PF_FIXED,
  C_PF_TAKEN,
  C_ZERO_STEP_CHECKS,
  count,
  ctl,
  SEPT_TREE,
  VM_TDX,
} from './control';
import { pagesOf } from './entry';
import { scratchFault } from './faults';
import { gmemAt, PAGE_OWNED, PAGE_TOUCHED, PAGES_LEVEL, pagesTree } from './gmems';
import { mmuInvalidateRetryGfn } from './invalidate';
import { memIsPrivate } from './mem_attributes';
import { endGfnOf, gfnToMemslot, Memslot } from './memslots';
import { faultAtOnce, initFault, RET_PF_MEMORY_FAULT, reserveFault } from './page_fault';
import { atEnd, atFlags, atLevel, treeAt, treeFlags, treeRunEnd } from './page_table';
import { EBUSY, EEXIST, EINTR, EINVAL, EIO, ENOMEM, STATUS_CAPACITY, STATUS_NO_HANDLE } from './status';
import { RET_PF_FIXED, RET_PF_RETRY, RET_PF_SPURIOUS } from './tdp_mmu';
import {
  ENTERING,
  tdxAcceptEnd,
  tdxAcceptedContent,
  tdxNoProgress,
  tdxPageAdd,
  tdxPageAddRun,
  tdxTerminate,
  tdxVcpuExit,
} from './tdx';
import {
  lastFailure,
  MR_EXTEND,
  MR_FINALIZE,
  PAGE_ACCEPT,
  plainSeamcalls,
  SEPT_PENDING,
  SEPT_PRESENT,
  seamcall,
  septAcceptRun,
  septLevel,
  septLockExclusive,
  septLockShared,
  septQuiet,
  septUnlockExclusive,
  TD_BUILD,
  TD_RUNNABLE,
  TDX_EXIT_EPT_VIOLATION,
  TDX_OPERAND_BUSY,
  TDX_PAGE_ALREADY_ACCEPTED,
  TDX_PAGE_SIZE_MISMATCH,
  TDX_SUCCESS,
  tdgMemPageAccept,
  VP_ENTER,
  ZERO_STEP_THRESHOLD,
} from './tdx_module';
import { enterGuest, leaveGuest, reloadRoots } from './vcpu';
import { Vcpu, vcpuAt } from './vcpus';

// --- TDG.MEM.PAGE.ACCEPT ---------------------------------------------------------------------------------------------

/** How often a guest tries again where the module says BUSY, or KVM cannot map. */
const ATTEMPTS: i32 = 16;

let acceptedPages: u64 = 0;
let alreadyPages: u64 = 0;

/**
 * The guest accepts [startGfn, endGfn): by pages of 2M where `maxLevel` is 2 and they fit, else of 4K. Where nothing is
 * mapped the accept leaves the TD, KVM maps, the guest tries again; where a leaf is smaller it goes down to 4K.
 * Returns 0 or -errno with the gfn it came to at result2; result0 is how many pages were PENDING, result1 how many had
 * been accepted before.
 */
export function vcpuAccept(index: u32, startGfn: u64, endGfn: u64, maxLevel: i32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  if (ctl.vmType != VM_TDX || endGfn <= startGfn || endGfn > ctl.directBits) return -EINVAL;
  if (!reserveFault()) return STATUS_CAPACITY;
  const vcpu = vcpuAt(index);
  ctl.result0 = 0;
  ctl.result1 = 0;
  const entered = enterGuest(vcpu);
  if (entered < 0) return entered;
  acceptedPages = 0;
  alreadyPages = 0;
  const result = acceptRange(index, vcpu, startGfn, endGfn, maxLevel);
  ctl.result0 = <f64>acceptedPages;
  ctl.result1 = <f64>alreadyPages;
  leaveGuest(vcpu);
  return result;
}

function stoppedAt(gfn: u64, error: i32): i32 {
  ctl.result2 = <f64>gfn;
  return error;
}

function acceptRange(index: u32, vcpu: Vcpu, startGfn: u64, endGfn: u64, maxLevel: i32): i32 {
  let gfn = startGfn;
  while (gfn < endGfn) {
    // The guest accepts page by page: those before this one are accepted.
    if (gfn > startGfn && !reserveFault()) return stoppedAt(gfn, -ENOMEM);
    let level = maxLevel == 2 && (gfn & 511) == 0 && gfn + 512 <= endGfn ? 2 : 1;
    let done: u64 = 0;
    for (let attempt = 0; done == 0; attempt++) {
      if (attempt == ATTEMPTS) return stoppedAt(gfn, -EBUSY);
      if (vcpu.inTd == 0) {
        const entered = enterGuest(vcpu);
        if (entered < 0) return stoppedAt(gfn, entered);
        if (entered != 0) continue;
      }
      // Where 2M pages fit again, the guest asks for them again.
      let reach = endGfn;
      if (maxLevel == 2) reach = level == 2 ? endGfn & ~511 : min(endGfn, (gfn | 511) + 1);
      done = acceptAlike(gfn, reach, level);
      if (done != 0) break;
      const status = tdgMemPageAccept(gfn, level);
      if (status == TDX_SUCCESS) {
        accepted(gfn, gfn + pagesOf(level));
        done = pagesOf(level);
      } else if (status == TDX_PAGE_ALREADY_ACCEPTED) {
        alreadyPages += pagesOf(level);
        done = pagesOf(level);
      } else if (status == TDX_PAGE_SIZE_MISMATCH) {
        level = 1;
      } else if (status == TDX_EXIT_EPT_VIOLATION) {
        const error = acceptViolation(index, vcpu, gfn, reach, level);
        if (error != 0) return stoppedAt(gfn, error);
      } else if (status != TDX_OPERAND_BUSY) {
        return stoppedAt(gfn, -EIO);
      }
    }
    vcpu.eptFaults = 0;
    gfn += done;
  }
  return 0;
}

function accepted(startGfn: u64, endGfn: u64): void {
  tdxAcceptedContent(startGfn, endGfn);
  acceptedPages += endGfn - startGfn;
}

/** Carries out at once the accepts from `gfn` on that find leaves alike, of `level`. Returns how many pages; 0: none. */
function acceptAlike(gfn: u64, endGfn: u64, level: i32): u64 {
  if (!septQuiet()) return 0;
  treeAt(SEPT_TREE, septLevel(), gfn);
  if (atLevel < level || (atFlags & SEPT_PRESENT) == 0) return 0;
  const pending = (atFlags & SEPT_PENDING) != 0;
  // A larger leaf is accepted whole, or not at all: of one accepted before, each part says so.
  if (pending && atLevel != level) return 0;
  const end = min(atEnd, endGfn) & ~(pagesOf(level) - 1);
  if (end <= gfn) return 0;
  if (pending) {
    septAcceptRun(gfn, end, level);
    accepted(gfn, end);
  } else {
    seamcall(PAGE_ACCEPT, gfn, level, TDX_PAGE_ALREADY_ACCEPTED, (end - gfn) / pagesOf(level));
    alreadyPages += end - gfn;
  }
  return end - gfn;
}

/** TD exit "EPT violation, accept": KVM maps the page of at most the level asked for. Returns 0 or -errno. */
function acceptViolation(index: u32, vcpu: Vcpu, gfn: u64, endGfn: u64, level: i32): i32 {
  tdxVcpuExit(vcpu);
  tdxNoProgress(vcpu);
  const fault = scratchFault();
  let result = RET_PF_RETRY;
  // KVM tries private faults again by itself, unless an invalidation of the gfn keeps them from ending.
  for (let left = ctl.zeroStepLocalRetry != 0 ? ATTEMPTS : 1; left > 0 && result == RET_PF_RETRY; left--) {
    initFault(fault, index, gfn, 0, 1, false);
    fault.acceptLevel = <u32>level;
    fault.limitPages = <u32>min(endGfn - gfn, 0xffffffff);
    count(C_PF_TAKEN, 1);
    result = faultAtOnce(fault);
    if (result == RET_PF_RETRY && mmuInvalidateRetryGfn(ctl.invSeq, gfn)) {
      const entered = enterGuest(vcpu);
      return entered < 0 ? entered : -EINTR;
    }
  }
  if (result == RET_PF_MEMORY_FAULT) return fault.error;
  if (result == RET_PF_FIXED || result == RET_PF_SPURIOUS) {
    // Each page of the run faulted, left the TD and came back.
    const alike = result == RET_PF_FIXED ? (fault.runPages + pagesOf(level) - 1) / pagesOf(level) : 1;
    count(C_PF_FIXED, alike);
    count(C_PF_TAKEN, alike - 1);
    if (alike > 1) {
      seamcall(PAGE_ACCEPT, gfn, level, TDX_EXIT_EPT_VIOLATION, alike - 1);
      seamcall(VP_ENTER, 0, 0, TDX_SUCCESS, alike - 1);
    }
  } else if (result != RET_PF_RETRY) {
    return result;
  }
  const entered = enterGuest(vcpu);
  return min(entered, 0);
}

/** An ACCEPT of the page of `level` at `gfn` begins: it holds the tree, shared, and the entry. Returns 0 or -errno. */
export function vcpuBeginAccept(index: u32, gfn: f64, level: i32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  const at = <u64>gfn;
  if (ctl.vmType != VM_TDX || level < 1 || level > 2 || (at & (pagesOf(level) - 1)) != 0 || at >= ctl.directBits) {
    return -EINVAL;
  }
  if (!reserveFault()) return STATUS_CAPACITY;
  const vcpu = vcpuAt(index);
  if (vcpu.acceptLevel != 0) return -EBUSY;
  const entered = enterGuest(vcpu);
  if (entered != 0) return entered < 0 ? entered : -EBUSY;
  if (!septLockShared()) return -EBUSY;
  vcpu.acceptGfnLevel = at | ((<u64>level) << 60);
  ctl.acceptsBegun++;
  return 0;
}

/** The ACCEPT ends. Returns its status, or -EINVAL if none was begun, or a kick ended it. */
export function vcpuFinishAccept(index: u32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  const vcpu = vcpuAt(index);
  if (ctl.vmType != VM_TDX || vcpu.acceptLevel == 0) return -EINVAL;
  if (!reserveFault()) return STATUS_CAPACITY;
  const status = tdxAcceptEnd(vcpu);
  leaveGuest(vcpu);
  return <i32>status;
}

// --- Entering under zero-step mitigation -----------------------------------------------------------------------------

/**
 * TDH.VP.ENTER begins. Under zero-step mitigation it holds the whole tree until vcpuFinishEnter(): returns 1 then; else
 * the vCPU is inside: 0. -EBUSY where the tree is locked.
 */
export function vcpuBeginEnter(index: u32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  if (ctl.vmType != VM_TDX) return -EINVAL;
  if (!reserveFault()) return STATUS_CAPACITY;
  const vcpu = vcpuAt(index);
  if (vcpu.eptFaults & ENTERING || vcpu.inTd != 0) return -EBUSY;
  if (vcpu.eptFaults < ZERO_STEP_THRESHOLD) return vcpuEnterNow(vcpu);
  if (!septLockExclusive()) return -EBUSY;
  count(C_ZERO_STEP_CHECKS, 1);
  vcpu.eptFaults |= ENTERING;
  return 1;
}
function vcpuEnterNow(vcpu: Vcpu): i32 {
  const entered = enterGuest(vcpu);
  if (entered == 0) vcpu.inGuest = 1;
  return entered > 0 ? -EBUSY : entered;
}

/** The check is over: the vCPU is inside. -EINVAL if none was under way, or a kick ended it. */
export function vcpuFinishEnter(index: u32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  if (!reserveFault()) return STATUS_CAPACITY;
  const vcpu = vcpuAt(index);
  if ((vcpu.eptFaults & ENTERING) == 0) return -EINVAL;
  septUnlockExclusive();
  vcpu.eptFaults = 0;
  return vcpuEnterNow(vcpu);
}

// --- TDG.VP.VMCALL<MapGPA> -------------------------------------------------------------------------------------------

export const MAP_GPA_SUCCESS: i32 = 0;
export const MAP_GPA_INVALID_OPERAND: i32 = 1;
export const MAP_GPA_ALIGN_ERROR: i32 = 2;
export const MAP_GPA_SUBFUNC_UNSUPPORTED: i32 = 3;

/** The checks of MapGPA of `size` bytes from `gpa`, with or without the shared bit. Mirrors: tdx_map_gpa() */
export function tdxMapGpa(index: u32, gpa: u64, size: u64): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  if (ctl.vmType != VM_TDX) return -EINVAL;
  if (ctl.tdState != TD_RUNNABLE) return -EINVAL;
  if (ctl.exitHypercall == 0) return MAP_GPA_SUBFUNC_UNSUPPORTED;
  const shared = ctl.directBits << 12;
  const limit = (<u64>1) << ctl.maxphyaddr;
  if (gpa + size <= gpa || gpa >= limit || gpa + size > limit) return MAP_GPA_INVALID_OPERAND;
  if ((gpa & shared) != ((gpa + size - 1) & shared)) return MAP_GPA_INVALID_OPERAND;
  if ((gpa & 4095) != 0 || (size & 4095) != 0) return MAP_GPA_ALIGN_ERROR;
  return MAP_GPA_SUCCESS;
}

/** One KVM_EXIT_HYPERCALL(KVM_HC_MAP_GPA_RANGE) to userspace. */
export function countHypercallExit(): i32 {
  count(C_EXITS_HYPERCALL, 1);
  return 0;
}

// --- The build phase -------------------------------------------------------------------------------------------------

const MEASURE_MEMORY_REGION: u32 = 1;
/** TDH.MR.EXTEND measures 256 bytes. */
const EXTENDS_PER_PAGE: u64 = 16;

/**
 * KVM_TDX_INIT_MEM_REGION: adds `pages` private pages from `gpa` on with their initial content, and measures them if
 * `flags` says so. A signal is pending after `signalAfter` pages (Infinity: none). Returns 0 or -errno; gfn and pages left
 * stand at result0 and result1, as the kernel writes them back.
 * Mirrors: tdx_vcpu_init_mem_region(), kvm_gmem_populate()
 */
export function tdxInitMemRegion(index: u32, gpa: u64, pages: u64, source: u64, flags: u32, signalAfter: f64): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  ctl.result0 = <f64>(gpa >> 12);
  ctl.result1 = <f64>pages;
  if (ctl.vmType != VM_TDX || ctl.tdState != TD_BUILD || (flags & ~MEASURE_MEMORY_REGION) != 0) return -EINVAL;
  const size = pages << 12;
  if ((source & 4095) != 0 || (gpa & 4095) != 0 || pages == 0 || size >> 12 != pages || gpa + size <= gpa)
    return -EINVAL;
  const shared = ctl.directBits << 12;
  if ((gpa & shared) != 0 || ((gpa + size - 1) & shared) != 0 || gpa + size > shared) return -EINVAL;
  let gfn = gpa >> 12;
  const end = gfn + pages;
  const signal = <f64>gfn + signalAfter;
  let result = 0;
  while (gfn < end && result == 0) {
    if (<f64>gfn >= signal) {
      result = -EINTR;
      break;
    }
    if (!reserveFault()) {
      result = gfn == gpa >> 12 ? STATUS_CAPACITY : -ENOMEM;
      break;
    }
    const limit = <f64>end > signal ? <u64>signal : end;
    result = populate(index, gfn, limit);
    if (result < 0) break;
    if (flags & MEASURE_MEMORY_REGION) {
      const failed = plainSeamcalls(MR_EXTEND, gfn, 1, <u64>result * EXTENDS_PER_PAGE);
      if (failed != 0) {
        result = -EIO;
        break;
      }
    }
    gfn += <u64>result;
    result = 0;
  }
  ctl.result0 = <f64>gfn;
  ctl.result1 = <f64>(end - gfn);
  return result;
}

/** Adds the page at `gfn` and, where nothing stands in the way, those behind it up to `limit`. Returns how many, or -errno. */
function populate(index: u32, gfn: u64, limit: u64): i32 {
  const slot = gfnToMemslot(0, gfn);
  if (slot === null || slot.gmem == 0 || !memIsPrivate(gfn)) return -EINVAL;
  const tree = pagesTree(gmemAt(slot.gmem - 1));
  const offset = slot.gmemPgoff - slot.baseGfn;
  const flags = treeFlags(tree, PAGES_LEVEL, gfn + offset);
  if ((flags & (PAGE_TOUCHED | PAGE_OWNED)) != 0) return -EEXIST;
  const reach = min(min(limit, endGfnOf(slot)), (gfn | 511) + 1);
  const fresh = treeRunEnd(tree, PAGES_LEVEL, gfn + offset, reach + offset) - offset;
  const loaded = reloadRoots(vcpuAt(index));
  if (loaded != 0) return loaded;
  const before = ctl.premapped;
  const fault = scratchFault();
  initFault(fault, index, gfn, 1, 1, true);
  fault.limitPages = <u32>(fresh - gfn);
  let result = faultAtOnce(fault);
  if (result == RET_PF_MEMORY_FAULT) return fault.error;
  if (result == RET_PF_RETRY) return -EBUSY;
  if (result < 0) return result;
  // Premapped by an earlier call whose PAGE.ADD failed: only the add is left.
  if (result == RET_PF_SPURIOUS) return addPages(slot, gfn, gfn + 1);
  return addPages(slot, gfn, gfn + (ctl.premapped - before));
}

/** PAGE.ADD of pages that are premapped. Returns how many, or -errno of the first that failed. */
function addPages(slot: Memslot, startGfn: u64, endGfn: u64): i32 {
  if (septQuiet()) {
    tdxPageAddRun(startGfn, endGfn);
    ctl.premapped -= endGfn - startGfn;
    return <i32>(endGfn - startGfn);
  }
  for (let gfn = startGfn; gfn < endGfn; gfn++) {
    const status = tdxPageAdd(slot, gfn);
    if (status == TDX_OPERAND_BUSY) return -EBUSY;
    if (status != TDX_SUCCESS) return -EIO;
  }
  return <i32>(endGfn - startGfn);
}

/** KVM_TDX_FINALIZE_VM: the TD can run from here on. Mirrors: tdx_td_finalize() */
export function tdxFinalize(): i32 {
  if (ctl.vmType != VM_TDX || ctl.tdState != TD_BUILD || ctl.premapped != 0) return -EINVAL;
  if (plainSeamcalls(MR_FINALIZE, 0, 0, 1) != 0) return lastFailure == TDX_OPERAND_BUSY ? -EBUSY : -EIO;
  ctl.tdState = TD_RUNNABLE;
  return 0;
}

/** KVM_TDX_TERMINATE_VM: the key is released at once; the VM is dead, its pages are reclaimed when their files close. */
export function tdxTerminateVm(): i32 {
  if (ctl.vmType != VM_TDX) return -EINVAL;
  if (ctl.dead != 0) return -EIO;
  if (!reserveFault()) return STATUS_CAPACITY;
  tdxTerminate();
  return 0;
}
