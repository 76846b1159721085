// What a vCPU does: enter the guest, touch memory, pre-fault, fault in two phases, change address space.
// Mirrors: arch/x86/kvm/mmu/mmu.c (kvm_mmu_page_fault, fast_page_fault, kvm_arch_vcpu_pre_fault_memory),
// virt/kvm/kvm_main.c (kvm_vcpu_pre_fault_memory)

import { attributesRunEnd } from './attributes';
import {
  C_PF_EMULATE,
  C_PF_FAST,
  C_PF_FIXED,
  C_PF_SPURIOUS,
  C_PF_TAKEN,
  C_TLB_FLUSH,
  count,
  ctl,
  GUEST_PATH,
  hasPrivateMem,
  SEPT_TREE,
  VM_SNP,
  VM_SW_PROTECTED,
  VM_TDX,
} from './control';
import { markPageDirty } from './dirty_log';
import { Fault, faultAt, scratchFault } from './faults';
import { gmemContentWritten } from './guest_memfd';
import { FAULTS_MAX } from './layout';
import { memIsPrivate } from './mem_attributes';
import { endGfnOf, gfnToMemslot, MEM_LOG_DIRTY_PAGES } from './memslots';
import {
  ACCESS_WRITE,
  accessAllowed,
  faultAtOnce,
  faultBegin,
  faultFinish,
  faultPlain,
  faultThaw,
  initFault,
  RET_PF_MEMORY_FAULT,
  reserveFault,
  reservesAnyFault,
} from './page_fault';
import { atEnd, atEntry, atFlags, atLevel, flagsIn, treeAt, treeEntryNear } from './page_table';
import { handleRmpFault, pscWaits, RMP_FAULTS, RMP_NOT_VALIDATED, RMP_PASSES, rmpCheck, rmpCheckedEnd } from './sev';
import { ACCESSED, DIRTY, KIND, MMU_WRITABLE, PRESENT, WRITABLE } from './spte';
import { EBUSY, EINTR, EINVAL, EIO, ENOENT, ENOMEM, EOPNOTSUPP, STATUS_CAPACITY, STATUS_NO_HANDLE } from './status';
import {
  allocRoot,
  entryOf,
  indexOf,
  mappedNewFlags,
  maxGfnExclusive,
  putRoot,
  RET_PF_EMULATE,
  RET_PF_FIXED,
  RET_PF_FROZEN,
  RET_PF_RETRY,
  RET_PF_SPURIOUS,
  ROOT_DIRECT,
  ROOT_MIRROR,
  Root,
  rootAt,
  rootEntryLevel,
  tdpMmuLook,
  tdpMmuLookNear,
  tdpMmuSetBits,
  tdpMmuSideCode,
  tdpMmuWalk,
} from './tdp_mmu';
import { tdxNoProgress, tdxVcpuEnter, tdxVcpuExit } from './tdx';
import {
  SEPT_BLOCKED,
  SEPT_PENDING,
  SEPT_PRESENT,
  septFlags,
  septLevel,
  septUnderBlockedTable,
  TD_RUNNABLE,
} from './tdx_module';
import { flushIfAsked } from './tlb';
import { codeOfMmio, SPTE_MMIO } from './trace';
import { Vcpu, vcpuAt } from './vcpus';

// --- Roots and entry -------------------------------------------------------------------------------------------------

function dropRoot(rootNumber: u32): void {
  if (rootNumber == 0) return;
  const root = rootAt(rootNumber - 1);
  root.users--;
  putRoot(root);
}

function takeRoot(kind: u32, asId: u32): u32 {
  const root = allocRoot(kind, asId);
  if (root === null) return 0;
  root.users++;
  return indexOf(root) + 1;
}

/** Unloads the vCPU's roots. Mirrors: kvm_mmu_unload() */
export function unloadRoots(vcpu: Vcpu): void {
  const direct = vcpu.root;
  const mirror = vcpu.mirrorRoot;
  vcpu.root = 0;
  vcpu.mirrorRoot = 0;
  dropRoot(direct);
  dropRoot(mirror);
}

/** Loads roots if none are loaded: an obsolete one counts as loaded. Mirrors: kvm_mmu_reload() */
export function reloadRoots(vcpu: Vcpu): i32 {
  if (vcpu.root != 0) return 0;
  // The mirror root first: the direct one is the newer, and comes first wherever roots are walked.
  if (ctl.vmType == VM_TDX) vcpu.mirrorRoot = takeRoot(ROOT_MIRROR, 0);
  vcpu.root = takeRoot(ROOT_DIRECT, vcpu.asId);
  return vcpu.root == 0 || (ctl.vmType == VM_TDX && vcpu.mirrorRoot == 0) ? -ENOMEM : 0;
}

/** Of enterGuest(): the module or KVM held the vCPU off; it tries again. */
export const ENTER_AGAIN: i32 = 1;

/**
 * What KVM_RUN does before it enters: obsolete roots go, new ones are loaded, owed flushes are done. A TD is entered
 * through its module. Returns 0, ENTER_AGAIN or -errno (-EINVAL: a TD that is not finalized).
 * Mirrors: vcpu_enter_guest(), arch/x86/kvm/x86.c
 */
export function enterGuest(vcpu: Vcpu): i32 {
  if (ctl.vmType == VM_TDX && ctl.tdState != TD_RUNNABLE) return -EINVAL;
  if (pscWaits(vcpu)) return -EBUSY;
  if (vcpu.root != 0 && rootAt(vcpu.root - 1).invalid != 0) unloadRoots(vcpu);
  if (vcpu.root == 0) {
    const error = reloadRoots(vcpu);
    if (error != 0) return error;
  }
  if (vcpu.everRun == 0) {
    vcpu.everRun = 1;
    count(C_TLB_FLUSH, 1);
  }
  if (ctl.vmType == VM_TDX) return tdxVcpuEnter(vcpu) ? 0 : ENTER_AGAIN;
  flushIfAsked(vcpu);
  return 0;
}

/** Out again; a vCPU that was told to run guest code is back inside. */
export function leaveGuest(vcpu: Vcpu): void {
  if (ctl.vmType != VM_TDX) return;
  if (vcpu.inGuest == 0) tdxVcpuExit(vcpu);
  else if (ctl.dead == 0) tdxVcpuEnter(vcpu);
}

/** KVM_RUN without an access. */
export function vcpuRun(index: u32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  const vcpu = vcpuAt(index);
  const entered = enterGuest(vcpu);
  leaveGuest(vcpu);
  return min(entered, 0);
}

/** Marks a vCPU as running guest code (flushes kick it), or as not. */
export function vcpuSetInGuest(index: u32, on: u32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  const vcpu = vcpuAt(index);
  if (on != 0) {
    const error = enterGuest(vcpu);
    if (error != 0) return error < 0 ? error : -EBUSY;
  } else {
    tdxVcpuExit(vcpu);
  }
  vcpu.inGuest = on;
  return 0;
}

/** Enters or leaves SMM: the other address space's root is loaded next. */
export function vcpuSetAddressSpace(index: u32, asId: u32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  if (asId >= ctl.asCount) return -EINVAL;
  const vcpu = vcpuAt(index);
  if (vcpu.asId == asId) return 0;
  unloadRoots(vcpu);
  vcpu.asId = asId;
  return 0;
}

// --- Guest accesses --------------------------------------------------------------------------------------------------

export const EXIT_DONE: i32 = 0;
export const EXIT_MMIO: i32 = 1;
export const EXIT_MEMORY_FAULT: i32 = 2;
export const EXIT_ERROR: i32 = 3;
/** The fault would be retried for as long as the invalidation goes on. */
export const EXIT_RETRY: i32 = 4;
/** A TD's guest touched a page it has not accepted, and takes the exception itself. */
export const EXIT_VE: i32 = 5;
/** An SNP guest touched a page it has not validated, and takes the exception (#VC) itself. */
export const EXIT_VC: i32 = 6;

function exitWith(reason: i32, flags: u32, error: i32): i32 {
  ctl.result1 = <f64>flags;
  ctl.result2 = <f64>error;
  return reason;
}

const MMIO_NONE: i32 = 0;
const MMIO_EXIT: i32 = 1;
const MMIO_STALE: i32 = 2;
/** A fault on an entry whose reserved bits are set. Mirrors: handle_mmio_page_fault() */
function mmioStage(vcpu: Vcpu, root: Root, gfn: u64): i32 {
  const code = tdpMmuSideCode(root, gfn);
  if ((code & 7) != SPTE_MMIO) return MMIO_NONE;
  if (vcpu.mmioValid != 0 && vcpu.mmioGfn == gfn && vcpu.mmioGeneration == ctl.mmioGen0) return MMIO_EXIT;
  const generation = vcpu.asId == 0 ? ctl.mmioGen0 : ctl.mmioGen1;
  if (code != codeOfMmio(generation)) return MMIO_STALE;
  vcpu.mmioGfn = gfn;
  vcpu.mmioGeneration = ctl.mmioGen0;
  vcpu.mmioValid = 1;
  return MMIO_EXIT;
}

/** Whether an access of `privateMode` is of the kind that the attribute says. Mirrors: page_fault_can_be_fast() */
function isAsAttribute(privateMode: u32, gfn: u64): bool {
  if (!hasPrivateMem() || privateMode == 2 || ctl.vmType == VM_SW_PROTECTED) return true;
  return (privateMode != 0) == memIsPrivate(gfn);
}

/** Whether an access of an SNP guest is private: by its C-bit, which of mode 2 is as the attribute says. */
function isSnpPrivate(privateMode: u32, gfn: u64): bool {
  return ctl.vmType == VM_SNP && (privateMode == 2 ? memIsPrivate(gfn) : privateMode != 0);
}

/** A write on a present leaf that may become writable without mmu_lock. Mirrors: fast_page_fault() */
function fastPageFault(vcpu: Vcpu, root: Root, gfn: u64, flags: u32, level: i32): bool {
  if ((flags & MMU_WRITABLE) == 0) return false;
  const slot = gfnToMemslot(vcpu.asId, gfn);
  const logged = slot !== null && (slot.flags & MEM_LOG_DIRTY_PAGES) != 0;
  if (level > 1 && logged) return false;
  tdpMmuSetBits(root, gfn, gfn + 1, WRITABLE);
  if (slot !== null && logged) markPageDirty(slot, gfn);
  count(C_PF_FAST, 1);
  return true;
}

/** What hardware and guest do on an access that the leaf allows. */
function touch(vcpu: Vcpu, root: Root, gfn: u64, access: u32, flags: u32): void {
  const write = access == ACCESS_WRITE;
  if (root.kind == ROOT_DIRECT) {
    const want = ACCESSED | (write ? DIRTY : 0);
    if ((flags & want) != want) tdpMmuSetBits(root, gfn, gfn + 1, want);
  }
  if (!write || !hasPrivateMem()) return;
  if (root.kind == ROOT_DIRECT && (flags & KIND) == 0) return;
  const slot = gfnToMemslot(vcpu.asId, gfn);
  if (slot !== null) gmemContentWritten(slot, gfn, gfn + 1);
}

/** How many gfns the last accessOnce() that ended in EXIT_DONE has accessed. */
let accessed: u64 = 1;

/**
 * One access by the guest, with every fault it takes; the same to the next gfns, `limit` in all, where their faults would
 * be plain and alike. `privateMode`: 0 shared, 1 private, 2 as the hardware would tell
 * (a TD: private unless the shared bit is set; elsewhere as the attribute says).
 * Returns EXIT_*; of an exit, result0 is the gfn, result1 the flags, result2 the error.
 */
function accessOnce(vcpuIndex: u32, vcpu: Vcpu, gfn: u64, access: u32, privateMode: u32, limit: u64): i32 {
  accessed = 1;
  ctl.result0 = <f64>(<i64>gfn);
  const isTd = ctl.vmType == VM_TDX;
  const mirrored = isTd && privateMode != 0;
  const reachable = gfn < maxGfnExclusive(mirrored ? 0 : ctl.directBits);
  let inKvm = false;
  for (let attempt = 0; attempt < 16; attempt++) {
    if (!inKvm) {
      const entered = enterGuest(vcpu);
      if (entered < 0) return exitWith(EXIT_ERROR, 0, entered);
      if (entered != 0) continue;
    }
    const root = rootAt((mirrored ? vcpu.mirrorRoot : vcpu.root) - 1);
    let present = false;
    let stale = MMIO_NONE;
    if (mirrored && reachable) {
      // What the guest meets is the S-EPT, not the mirror.
      const state = septUnderBlockedTable(gfn) ? 0 : septFlags(gfn);
      if (!inKvm && (state & (SEPT_PRESENT | SEPT_BLOCKED)) == SEPT_PRESENT) {
        if ((state & SEPT_PENDING) != 0) {
          if (ctl.septVeDisable == 0) {
            // The exception is progress.
            vcpu.eptFaults = 0;
            return exitWith(EXIT_VE, 8, 0);
          }
          ctl.dead = 1;
          return exitWith(EXIT_ERROR, 8, -EIO);
        }
        vcpu.eptFaults = 0;
        touch(vcpu, root, gfn, access, PRESENT);
        return EXIT_DONE;
      }
      count(C_PF_TAKEN, 1);
    } else if (reachable) {
      tdpMmuLookNear(root, gfn);
      const flags = atFlags;
      const level = atLevel;
      present = (flags & PRESENT) != 0;
      if (present && accessAllowed(flags, access)) {
        if ((flags & KIND) != 0 && isSnpPrivate(privateMode, gfn)) {
          const verdict = rmpCheck(gfn, gfn + 1, level);
          if (verdict == RMP_NOT_VALIDATED) return exitWith(EXIT_VC, 8, 0);
          if (verdict == RMP_FAULTS) {
            const error = takeRmpFault(vcpuIndex, gfn, access);
            if (error != 0) return exitWith(EXIT_MEMORY_FAULT, 8, error);
            continue;
          }
        }
        touch(vcpu, root, gfn, access, flags);
        return EXIT_DONE;
      }
      if (!present) {
        const faulted = faultPlain(vcpu, atEntry, gfn, access, privateMode, limit);
        if (faulted != 0) {
          accessed = faulted;
          // What was mapped lets the access through, and is touched already.
          if (!isTd) return EXIT_DONE;
          tdxVcpuExit(vcpu);
          continue;
        }
        // A private access of an SNP guest is never MMIO.
        if (!isSnpPrivate(privateMode, gfn)) stale = mmioStage(vcpu, root, gfn);
        if (stale == MMIO_EXIT) return exitWith(EXIT_MMIO, 0, 0);
      }
      count(C_PF_TAKEN, 1);
      const mayBeFast = present && access == ACCESS_WRITE && isAsAttribute(privateMode, gfn);
      if (mayBeFast && fastPageFault(vcpu, root, gfn, flags, level)) {
        count(C_PF_FIXED, 1);
        if (isTd) tdxVcpuExit(vcpu);
        continue;
      }
    } else {
      count(C_PF_TAKEN, 1);
    }
    if (isTd) {
      tdxVcpuExit(vcpu);
      if (mirrored && !inKvm) tdxNoProgress(vcpu);
    }
    const fault = scratchFault();
    initFault(fault, vcpuIndex, gfn, access, stale == MMIO_STALE ? 0 : privateMode, false);
    // A fault through a stale MMIO spte is never told to be private.
    if (stale == MMIO_STALE) fault.isPrivate = 0;
    let result = faultAtOnce(fault);
    // Going in without progress is what zero-step mitigation counts: KVM tries private faults again by itself.
    inKvm = mirrored && result == RET_PF_RETRY && ctl.zeroStepLocalRetry != 0;
    if (result == RET_PF_FIXED) {
      count(C_PF_FIXED, 1);
      const meetsRmp = ctl.vmType == VM_SNP && (mappedNewFlags & KIND) != 0;
      if (!isTd && !meetsRmp && accessAllowed(mappedNewFlags, access)) {
        // The guest tries again, and finds what was just mapped. (A TD is entered by the module, and a private page of an
        // SNP guest meets the RMP: the loop does that.)
        flushIfAsked(vcpu);
        touch(vcpu, root, gfn, access, mappedNewFlags);
        return EXIT_DONE;
      }
    } else if (result == RET_PF_SPURIOUS) count(C_PF_SPURIOUS, 1);
    else if (result == RET_PF_EMULATE) {
      count(C_PF_EMULATE, 1);
      return exitWith(EXIT_MMIO, 0, 0);
    } else if (result == RET_PF_MEMORY_FAULT) {
      return exitWith(EXIT_MEMORY_FAULT, fault.isPrivate != 0 ? 8 : 0, fault.error);
    } else if (result < 0) {
      return exitWith(EXIT_ERROR, 0, result);
    }
  }
  return exitWith(EXIT_RETRY, 0, 0);
}

/**
 * An #NPF with the RMP bit on a private leaf that lets the access through: first a fault like any other, which finds
 * nothing to do, then the RMP fault. Returns 0, or the error of a KVM_EXIT_MEMORY_FAULT.
 * Mirrors: npf_interception(), arch/x86/kvm/svm/svm.c
 */
export function takeRmpFault(vcpuIndex: u32, gfn: u64, access: u32): i32 {
  count(C_PF_TAKEN, 1);
  if (access == ACCESS_WRITE && memIsPrivate(gfn)) {
    count(C_PF_FAST, 1);
    count(C_PF_SPURIOUS, 1);
  } else {
    const fault = scratchFault();
    initFault(fault, vcpuIndex, gfn, access, 1, false);
    let result = faultAtOnce(fault);
    if (result == RET_PF_FIXED) count(C_PF_FIXED, 1);
    else if (result == RET_PF_SPURIOUS) count(C_PF_SPURIOUS, 1);
    else if (result == RET_PF_MEMORY_FAULT) return fault.error;
    else if (result < 0) return result;
  }
  handleRmpFault(vcpuIndex, gfn);
  return 0;
}

/** Touches the gfns from `gfn` on as long as leaves alike let the access through: none faults. Returns how many. */
function touchRun(vcpu: Vcpu, gfn: u64, limit: f64, access: u32, privateMode: u32): u64 {
  const mirrored = ctl.vmType == VM_TDX && privateMode != 0;
  const bits = mirrored ? 0 : ctl.directBits;
  if (gfn >= maxGfnExclusive(bits)) return 0;
  const root = rootAt((mirrored ? vcpu.mirrorRoot : vcpu.root) - 1);
  if (mirrored) {
    if (ctl.septTablesBlocked != 0) return 0;
    treeAt(SEPT_TREE, septLevel(), gfn);
    if (atFlags != SEPT_PRESENT) return 0;
    vcpu.eptFaults = 0;
  } else {
    tdpMmuWalk(root, gfn);
    if ((atFlags & PRESENT) == 0 || !accessAllowed(atFlags, access)) return 0;
  }
  const flags = atFlags;
  const slot = gfnToMemslot(vcpu.asId, gfn);
  if (slot === null) return 0;
  let end = min(atEnd - bits, endGfnOf(slot));
  if (<f64>(end - gfn) > limit) end = gfn + <u64>limit;
  if (ctl.vmType == VM_SNP && (flags & KIND) != 0) {
    const level = atLevel;
    if (privateMode == 2) end = attributesRunEnd(gfn, end);
    if (isSnpPrivate(privateMode, gfn)) {
      if (rmpCheck(gfn, end, level) != RMP_PASSES) return 0;
      end = rmpCheckedEnd;
    }
  }
  const write = access == ACCESS_WRITE;
  if (root.kind == ROOT_DIRECT) {
    const want = ACCESSED | (write ? DIRTY : 0);
    if ((flags & want) != want) tdpMmuSetBits(root, gfn, end, want);
  }
  if (write && hasPrivateMem() && (root.kind == ROOT_MIRROR || (flags & KIND) != 0)) gmemContentWritten(slot, gfn, end);
  return end - gfn;
}

/**
 * One access by a vCPU that has nothing to do before it enters: to a shared page that is there and stays as it is, or by a
 * plain fault. Returns whether it was done. If not, nothing was changed: accessSome() does every access, and would have done
 * this one in the same way. Not where a trace watches, nor for TDs, which are entered through their module.
 */
function accessPlain(vcpu: Vcpu, gfn: u64, access: u32, privateMode: u32): bool {
  if ((ctl.traceOn | ctl.paused | ctl.failReservation | ctl.pscHighWater) != 0 || ctl.vmType == VM_TDX) return false;
  if (vcpu.everRun == 0 || vcpu.root == 0) return false;
  const root = rootAt(vcpu.root - 1);
  if (root.invalid != 0 || gfn >= maxGfnExclusive(0) || !reservesAnyFault()) return false;
  const entry = treeEntryNear(GUEST_PATH, entryOf(root), rootEntryLevel(), gfn);
  const flags = flagsIn(entry, gfn);
  if (flags != 0) {
    const want = ACCESSED | (access == ACCESS_WRITE ? DIRTY : 0);
    if ((flags & (want | KIND)) != want || !accessAllowed(flags, access)) return false;
  } else if (faultPlain(vcpu, entry, gfn, access, privateMode, 1) == 0) {
    return false;
  }
  flushIfAsked(vcpu);
  ctl.result0 = <f64>(<i64>gfn);
  return true;
}

/**
 * `accesses` accesses at `gfn`, `gfn` + `strideGfns`, …; stops at the first that does not end in EXIT_DONE. result3 is
 * how many were done.
 */
export function vcpuAccess(index: u32, gfn: u64, access: u32, privateMode: u32, accesses: f64, strideGfns: u64): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  const vcpu = vcpuAt(index);
  let exit: i32 = EXIT_DONE;
  let done: f64 = 0;
  while (done < accesses) {
    // Of neighbours whole runs come first: touching the first page of one alone would make it differ from the others.
    const isAlone = strideGfns != 1 || accesses - done == 1;
    if (isAlone && accessPlain(vcpu, gfn, access, privateMode)) {
      done += 1;
      gfn += strideGfns;
      continue;
    }
    exit = accessSome(index, vcpu, gfn, access, privateMode, accesses - done, isAlone);
    if (exit != EXIT_DONE) break;
    done += <f64>(<i64>accessed);
    gfn += accessed * strideGfns;
  }
  ctl.result3 = done;
  // Each access is an operation of its own: those before this one are done.
  if (exit == STATUS_CAPACITY && done != 0) exit = exitWith(EXIT_ERROR, 0, -ENOMEM);
  leaveGuest(vcpu);
  return exit;
}

/** 0 shared, 1 private, 2 as the attribute says: in a TD the shared bit decides, and `privateMode` where it is clear. */
function modeAt(gfn: u64, privateMode: u32): u32 {
  if ((gfn & ctl.directBits) != 0) return 0;
  return ctl.directBits != 0 && privateMode == 2 ? 1 : privateMode;
}

/**
 * One access, or a run of accesses alike that `gfn` begins: at most `limit`, one if it `isAlone`. Returns EXIT_*, or
 * STATUS_CAPACITY with nothing changed.
 */
function accessSome(index: u32, vcpu: Vcpu, gfn: u64, access: u32, privateMode: u32, limit: f64, isAlone: bool): i32 {
  if (!reserveFault()) {
    ctl.result0 = <f64>gfn;
    return STATUS_CAPACITY;
  }
  const mode = modeAt(gfn, privateMode);
  const canonical = gfn & ~ctl.directBits;
  if (!isAlone && enterGuest(vcpu) == 0) {
    accessed = touchRun(vcpu, canonical, limit, access, mode);
    if (accessed != 0) return EXIT_DONE;
  }
  // A TD is entered anew after each fault; a test counts reservations.
  const mayRun = !isAlone && ctl.vmType != VM_TDX && ctl.failReservation == 0;
  return accessOnce(index, vcpu, canonical, access, mode, mayRun ? <u64>(<i64>min(limit, 512)) : 1);
}

// --- KVM_PRE_FAULT_MEMORY --------------------------------------------------------------------------------------------

/**
 * Maps [gpa, gpa + size) as read faults would, as the attributes say private or shared. Returns 0 if anything was mapped,
 * -errno if nothing was; what is left over stands at result0 (gfn) and result1, result2 (size, low and high half).
 * Mirrors: kvm_vcpu_pre_fault_memory(), kvm_arch_vcpu_pre_fault_memory()
 */
export function vcpuPreFaultMemory(index: u32, gpa: u64, size: u64, flags: u64): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  const error = preFault(index, gpa, size, flags);
  return error;
}

function leftOver(gpa: u64, size: u64): void {
  ctl.result0 = <f64>(gpa >> 12);
  ctl.result1 = <f64>(<u32>size);
  ctl.result2 = <f64>(<u32>(size >> 32));
}

function preFault(index: u32, gpa: u64, size: u64, flags: u64): i32 {
  leftOver(gpa, size);
  // Mirrors: pre_fault_allowed, arch/x86/kvm/x86.c
  if (ctl.vmType == VM_TDX && ctl.tdState != TD_RUNNABLE) return -EOPNOTSUPP;
  if (flags != 0) return -EINVAL;
  if ((gpa & 4095) != 0 || (size & 4095) != 0 || gpa + size <= gpa) return -EINVAL;
  const vcpu = vcpuAt(index);
  const whole = size;
  let result = 0;
  while (size > 0) {
    if (!reserveFault()) {
      result = STATUS_CAPACITY;
      break;
    }
    result = reloadRoots(vcpu);
    if (result != 0) break;
    const gfn = gpa >> 12;
    if (ctl.directBits != 0 && (gfn & ctl.directBits) != 0) {
      result = -EINVAL;
      break;
    }
    const fault = scratchFault();
    initFault(fault, index, gfn, 0, 2, true);
    // With an obsolete root KVM retries the first page for ever, and only that one is faulted in on the host.
    const isObsolete = rootAt(vcpu.root - 1).invalid != 0;
    fault.limitPages = isObsolete ? 1 : <u32>min(size >> 12, 0xffffffff);
    for (let attempt = 0; attempt < 4; attempt++) {
      result = faultAtOnce(fault);
      if (result != RET_PF_RETRY) break;
    }
    if (result == RET_PF_RETRY) result = -EINTR;
    else if (result == RET_PF_EMULATE) result = -ENOENT;
    else if (result == RET_PF_MEMORY_FAULT) result = fault.error;
    if (result < 0) break;
    result = 0;
    const bytes = min(size, fault.runPages << 12);
    gpa += bytes;
    size -= bytes;
  }
  leftOver(gpa, size);
  return size < whole ? 0 : result;
}

// --- A fault in two phases -------------------------------------------------------------------------------------------

/** Takes the sequence number and the page. Returns the fault's id, or a negative status. */
export function vcpuBeginFault(index: u32, gfn: u64, access: u32, privateMode: u32): i32 {
  if (index >= ctl.vcpuCount) return STATUS_NO_HANDLE;
  if (!reserveFault()) return STATUS_CAPACITY;
  let id: u32 = 0;
  while (id < FAULTS_MAX - 1 && faultAt(id).stage != 0) id++;
  if (id == FAULTS_MAX - 1) return -ENOMEM;
  const vcpu = vcpuAt(index);
  const error = reloadRoots(vcpu);
  if (error != 0) return error;
  if (ctl.vmType == VM_TDX && ctl.tdState != TD_RUNNABLE) return -EINVAL;
  tdxVcpuExit(vcpu);
  const fault = faultAt(id);
  memory.fill(changetype<usize>(fault), 0, offsetof<Fault>());
  initFault(fault, index, gfn & ~ctl.directBits, access, modeAt(gfn, privateMode), false);
  fault.result = beginFast(vcpu, fault);
  if (fault.result != 0) fault.stage = 3;
  else {
    fault.result = faultBegin(fault);
    fault.stage = fault.result == 0 ? 1 : 3;
  }
  if (id >= ctl.faultHighWater) ctl.faultHighWater = id + 1;
  return <i32>id;
}

/** The fast path of a write, which comes first and needs no second phase. Returns RET_PF_FIXED, RET_PF_SPURIOUS or 0. */
function beginFast(vcpu: Vcpu, fault: Fault): i32 {
  if (fault.access != ACCESS_WRITE || fault.gfn >= maxGfnExclusive(ctl.directBits)) return 0;
  if (ctl.vmType == VM_TDX && fault.isPrivate != 0) return 0;
  if (hasPrivateMem() && (fault.isPrivate != 0) != memIsPrivate(fault.gfn)) return 0;
  const root = rootAt(vcpu.root - 1);
  tdpMmuLook(root, fault.gfn);
  if ((atFlags & PRESENT) == 0) return 0;
  if (atFlags & WRITABLE) {
    count(C_PF_FAST, 1);
    return RET_PF_SPURIOUS;
  }
  return fastPageFault(vcpu, root, fault.gfn, atFlags, atLevel) ? RET_PF_FIXED : 0;
}

/** Installs or retries. Returns RET_PF_*, RET_PF_MEMORY_FAULT or -errno; RET_PF_FROZEN asks to be called again. */
export function vcpuFinishFault(id: u32): i32 {
  if (id >= FAULTS_MAX - 1) return STATUS_NO_HANDLE;
  const fault = faultAt(id);
  if (fault.stage == 0) return STATUS_NO_HANDLE;
  if (!reserveFault()) return STATUS_CAPACITY;
  let result = fault.result;
  if (fault.stage == 1) {
    result = faultFinish(fault, true);
    if (result == RET_PF_FROZEN) {
      fault.stage = 2;
      return result;
    }
  } else if (fault.stage == 2) {
    result = faultThaw(fault);
  }
  ctl.result0 = <f64>fault.gfn;
  ctl.result1 = fault.isPrivate != 0 ? 8 : 0;
  ctl.result2 = <f64>fault.error;
  ctl.result3 = <f64>fault.seq;
  fault.stage = 0;
  backInside(fault, result);
  return result;
}

/** The fault ended in `result`: a vCPU that runs guest code goes in again, to fault once more if nothing was mapped. */
function backInside(fault: Fault, result: i32): void {
  const vcpu = vcpuAt(fault.vcpu);
  if (ctl.vmType != VM_TDX || vcpu.inGuest == 0 || ctl.dead != 0) return;
  const stuck = result == RET_PF_RETRY && fault.isPrivate != 0 && ctl.zeroStepLocalRetry == 0;
  if (stuck) tdxNoProgress(vcpu);
  tdxVcpuEnter(vcpu);
}

/** Gives a fault up. */
export function vcpuDropFault(id: u32): i32 {
  if (id >= FAULTS_MAX - 1 || faultAt(id).stage == 0) return STATUS_NO_HANDLE;
  const fault = faultAt(id);
  if (fault.stage == 2) {
    if (!reserveFault()) return STATUS_CAPACITY;
    faultThaw(fault);
  }
  fault.stage = 0;
  backInside(fault, 0);
  return 0;
}
