// A VM's life: what it is, its capabilities, its end.
// Mirrors: virt/kvm/kvm_main.c (kvm_create_vm, kvm_destroy_vm), arch/x86/kvm/x86.c (kvm_vm_ioctl_enable_cap)

import { reserve } from './blocks';
import { recoverNxHugePages } from './collapse';
import { C_LOCK_SECTIONS, count, ctl, INHIBIT_TREE, LAYOUT_VERSION, PROFILE_6_16, SEPT_TREE, VM_TDX } from './control';
import { gmemRelease } from './guest_memfd';
import { RING_BASE, TRACE_RECORD_BYTES } from './layout';
import { invalidateRoots, zapAllFast, zapInvalidatedRoots } from './memory_region';
import { freeSubtree } from './page_table';
import { EINVAL, STATUS_CAPACITY, STATUS_DESTROYED } from './status';
import { nextRoot, ROOT_DIRECT, ROOT_MIRROR, tdpMmuZapRoot } from './tdp_mmu';
import { tdxReleaseHkid } from './tdx';
import { septInit, septLevel, TD_BUILD, TD_RUNNABLE } from './tdx_module';
import { EV_FLUSH_SHADOW_ALL, EV_RECLAIMED, EV_ZAP_ALL, trace } from './trace';
import { unloadRoots } from './vcpu';
import { vcpuAt } from './vcpus';

const MAGIC: u32 = 0x74707365;

function alignUp(value: u64, to: u64): u64 {
  return (value + to - 1) & ~(to - 1);
}

/**
 * Lays out a fresh memory of `memoryBytes` and makes the VM. Returns 0, or STATUS_CAPACITY if the regions do not fit.
 * The free-block stacks take a share of what the ring leaves, the arena the rest.
 */
export function vmCreate(
  memoryBytes: f64,
  vmType: u32,
  profile: u32,
  filterForm: u32,
  maxphyaddr: u32,
  gpaw: u32,
  vcpus: u32,
  slotsPagesMax: f64,
  ringRecords: u32,
): i32 {
  ctl.magic = MAGIC;
  ctl.layoutVersion = LAYOUT_VERSION;
  ctl.memoryBytes = <u64>memoryBytes;
  ctl.vmType = vmType;
  ctl.profile = profile;
  ctl.filterForm = filterForm;
  ctl.maxphyaddr = maxphyaddr;
  ctl.gpaw = gpaw;
  const width = vmType == VM_TDX ? gpaw : maxphyaddr;
  ctl.rootLevel = width <= 48 ? 4 : 5;
  if (vmType == VM_TDX) {
    ctl.directBits = (<u64>1) << (gpaw - 1 - 12);
    ctl.tdState = TD_RUNNABLE;
    ctl.tdEpoch = 1;
    septInit();
  }
  ctl.asCount = vmType == 0 ? 2 : 1;
  ctl.vcpuCount = vcpus;
  ctl.slotsPagesMax = <u64>slotsPagesMax;
  ctl.hugepageGuard = 1;
  ctl.septVeDisable = 1;
  ctl.quirkSlotZapAll = 1;
  ctl.eagerPageSplit = 1;
  ctl.mmioCaching = 1;
  ctl.zeroStepLocalRetry = 1;
  ctl.packages = 1;
  ctl.budget = Infinity;
  ctl.yieldGfn = -1;
  ctl.mmioGen0 = 0;
  ctl.mmioGen1 = 1;
  ctl.anonVmaNext = 1;
  ctl.ringRecords = ringRecords;
  ctl.invStart = ~(<u64>0);
  ctl.invEnd = ~(<u64>0);
  let at = alignUp(RING_BASE + <u64>ringRecords * TRACE_RECORD_BYTES, 65536);
  if (at >= <u64>memoryBytes) return STATUS_CAPACITY;
  // A block of 64 bytes needs 4 bytes of the first stack, 1 of the second, a 32nd of the third: less than 6 in all.
  const blocks = (<u64>memoryBytes - at) / 70;
  ctl.stackBase0 = <u32>at;
  at += blocks * 4;
  ctl.stackBase1 = <u32>at;
  at += blocks + 4;
  ctl.stackBase2 = <u32>at;
  at = alignUp(at + (blocks / 128 + 1) * 4, 65536);
  if (at + 65536 > <u64>memoryBytes) return STATUS_CAPACITY;
  ctl.arenaBase = <u32>at;
  ctl.arenaBlocks = <u32>min(blocks, (<u64>memoryBytes - at) >> 6);
  return 0;
}

/** The options that have defaults: one call each, before or after use as the module parameter allows. */
export const OPTION_HUGEPAGE_GUARD: u32 = 0;
export const OPTION_SEPT_VE_DISABLE: u32 = 1;
export const OPTION_QUIRK_SLOT_ZAP_ALL: u32 = 2;
export const OPTION_NX_HUGE_PAGES: u32 = 3;
export const OPTION_EAGER_PAGE_SPLIT: u32 = 4;
export const OPTION_MMIO_CACHING: u32 = 5;
export const OPTION_TRACE: u32 = 6;
export const OPTION_FAIL_RESERVATION: u32 = 7;
export const OPTION_TD_BUILD: u32 = 8;
/** For tests: how many blocks of 64 bytes the arena may still hand out. */
export const OPTION_SPARE_BLOCKS: u32 = 9;
export const OPTION_PRIVATE_HUGE_PAGES: u32 = 10;
export const OPTION_ZAP_POLICY: u32 = 11;
export const OPTION_TRACK_BATCHED: u32 = 12;
export const OPTION_ZERO_STEP_LOCAL_RETRY: u32 = 13;
export const OPTION_PACKAGES: u32 = 14;
export const OPTION_RMP_CHECKS: u32 = 20;
export const OPTION_GMEM_FILTER_BY_TARGET: u32 = 21;
export function vmSetOption(option: u32, value: u32): i32 {
  switch (option) {
    case OPTION_HUGEPAGE_GUARD:
      ctl.hugepageGuard = value;
      return 0;
    case OPTION_SEPT_VE_DISABLE:
      ctl.septVeDisable = value;
      return 0;
    case OPTION_QUIRK_SLOT_ZAP_ALL:
      ctl.quirkSlotZapAll = value;
      return 0;
    case OPTION_NX_HUGE_PAGES:
      ctl.nxHugePages = value;
      return 0;
    case OPTION_EAGER_PAGE_SPLIT:
      ctl.eagerPageSplit = value;
      return 0;
    case OPTION_MMIO_CACHING:
      ctl.mmioCaching = value;
      return 0;
    case OPTION_TRACE:
      ctl.traceOn = value;
      return 0;
    case OPTION_FAIL_RESERVATION:
      ctl.failReservation = value;
      return 0;
    case OPTION_GMEM_FILTER_BY_TARGET:
      ctl.gmemFilterByTarget = value;
      return 0;
    case OPTION_RMP_CHECKS:
      ctl.rmpChecks = value;
      return 0;
    case OPTION_SPARE_BLOCKS:
      ctl.arenaBlocks = min(ctl.arenaBlocks, ctl.arenaNext + value);
      return 0;
    case OPTION_TD_BUILD:
      ctl.tdState = value != 0 ? TD_BUILD : TD_RUNNABLE;
      return 0;
    case OPTION_PRIVATE_HUGE_PAGES:
      ctl.privateHugePages = value;
      return 0;
    case OPTION_ZAP_POLICY:
      ctl.zapPolicy = value;
      return 0;
    case OPTION_TRACK_BATCHED:
      ctl.trackBatched = value;
      return 0;
    case OPTION_ZERO_STEP_LOCAL_RETRY:
      ctl.zeroStepLocalRetry = value;
      return 0;
    case OPTION_PACKAGES:
      ctl.packages = value;
      return 0;
    default:
      return -EINVAL;
  }
}

/** Writes nx_huge_pages after boot: every root of the VM goes. Mirrors: set_nx_huge_pages() */
export function vmWriteNxHugePages(value: u32): i32 {
  if (!reserve(64, 24)) return STATUS_CAPACITY;
  if (ctl.nxHugePages == value) return 0;
  ctl.nxHugePages = value;
  zapAllFast();
  return 0;
}

export function vmRecoverNxHugePages(limit: u32): i32 {
  if (!reserve(64, 24)) return STATUS_CAPACITY;
  return recoverNxHugePages(limit);
}

const KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: u32 = 168;
const KVM_CAP_EXIT_HYPERCALL: u32 = 201;
/** 1 << KVM_HC_MAP_GPA_RANGE, the one hypercall that userspace can ask for. */
const KVM_EXIT_HYPERCALL_VALID_MASK: u64 = 1 << 12;
const KVM_CAP_DISABLE_QUIRKS2: u32 = 213;
const KVM_X86_QUIRK_SLOT_ZAP_ALL: u64 = 1 << 7;
/** The quirks that 6.12 knows: bits 0 to 7. */
const KVM_X86_VALID_QUIRKS: u64 = 0xff;
/** KVM_ENABLE_CAP. Mirrors: kvm_vm_ioctl_enable_cap_generic(), kvm_vm_ioctl_enable_cap() */
export function vmEnableCap(cap: u32, flags: u64, arg0: u64): i32 {
  if (flags != 0) return -EINVAL;
  if (cap == KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2) {
    const allowed: u64 = (arg0 & 1) != 0 ? 3 : 1;
    if (arg0 & ~allowed) return -EINVAL;
    ctl.manualDirtyLog = <u32>arg0;
    return 0;
  }
  if (cap == KVM_CAP_EXIT_HYPERCALL) {
    if (arg0 & ~KVM_EXIT_HYPERCALL_VALID_MASK) return -EINVAL;
    ctl.exitHypercall = <u32>arg0;
    return 0;
  }
  if (cap == KVM_CAP_DISABLE_QUIRKS2) {
    if (arg0 & ~KVM_X86_VALID_QUIRKS) return -EINVAL;
    if (arg0 & KVM_X86_QUIRK_SLOT_ZAP_ALL) ctl.quirkSlotZapAll = 0;
    return 0;
  }
  return -EINVAL;
}

// --- The end ---------------------------------------------------------------------------------------------------------

/**
 * Close of the last VM descriptor. Open guest_memfd files hold the VM: it then dies with the last of them.
 * Mirrors: kvm_vm_release(), kvm_destroy_vm()
 */
export function vmDestroy(): i32 {
  if (ctl.destroyed != 0) return STATUS_DESTROYED;
  // The accepts under way end as their vCPUs leave the TD.
  if (!reserve(64 + 12 * ctl.acceptsBegun, 24 + 4 * ctl.acceptsBegun)) return STATUS_CAPACITY;
  ctl.destroyed = 1;
  if (ctl.openGmems == 0) tearDown();
  return 0;
}

/** The last close of a guest_memfd, and of the VM if nothing else holds it. */
export function vmReleaseGmem(fd: i32, serial: u32): i32 {
  const error = gmemRelease(fd, serial);
  if (error != 0) return error;
  if (ctl.destroyed == 1 && ctl.openGmems == 0) tearDown();
  return 0;
}

/**
 * Zaps the direct trees, then frees every root: of a TD the key is released in between, and each mirror table reclaimed.
 * Mirrors: kvm_arch_flush_shadow_all(), tdx_mmu_release_hkid(), kvm_mmu_uninit_tdp_mmu()
 */
function tearDown(): void {
  trace(EV_FLUSH_SHADOW_ALL, 0, 0, 0);
  trace(EV_ZAP_ALL, 0, 0, 0);
  count(C_LOCK_SECTIONS, 1);
  let root = nextRoot(0);
  while (root !== null) {
    const sequence = root.sequence;
    if (root.kind == ROOT_DIRECT) tdpMmuZapRoot(root, false);
    root = nextRoot(sequence);
  }
  trace(EV_RECLAIMED, 0, 0, 0);
  if (ctl.vmType == VM_TDX) tdxReleaseHkid();
  for (let index: u32 = 0; index < ctl.vcpuCount; index++) unloadRoots(vcpuAt(index));
  invalidateRoots(ROOT_DIRECT);
  root = nextRoot(0);
  while (root !== null) {
    if (root.kind == ROOT_MIRROR) root.invalid = 1;
    root = nextRoot(root.sequence);
  }
  // 6.16 frees exclusively; 6.12 walks the direct roots once more in shared mode. Mirror tables never go in shared mode.
  zapInvalidatedRoots(ctl.profile != PROFILE_6_16);
  if (ctl.vmType == VM_TDX) {
    freeSubtree(SEPT_TREE, septLevel());
    freeSubtree(INHIBIT_TREE, 6);
  }
  ctl.flushOwed = 0;
  // The notifier is gone with the slots: the host lives on alone.
  ctl.slotCount0 = 0;
  ctl.slotCount1 = 0;
  ctl.destroyed = 2;
}
