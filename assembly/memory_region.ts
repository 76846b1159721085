// Create, move, delete, re-flag a memslot; zap what that invalidates; whole trees when all goes.
// Mirrors: virt/kvm/kvm_main.c (__kvm_set_memory_region, kvm_set_memslot), arch/x86/kvm/x86.c
// (kvm_arch_prepare_memory_region, kvm_arch_flush_shadow_memslot), arch/x86/kvm/mmu/mmu.c (kvm_mmu_zap_all_fast)

import { reserveWanted, want, wantNothing } from './blocks';
import {
  C_FREE_OBSOLETE_ROOTS,
  C_LOCK_SECTIONS,
  count,
  ctl,
  FORM_ATTR_FILTER,
  FORM_GMEM_IN_PLACE,
  FORM_RFC_V4,
  FORM_TDX_V18,
  hasPrivateMem,
  VM_DEFAULT,
} from './control';
import { applyDirtyFlags, prepareDirtyBitmap } from './dirty_log';
import { faultIsBegun } from './faults';
import { bindAttributes, unbindAttributes, wantBoundAttributes, wantUnbindAttributes } from './gmem_attributes';
import { gmemCheckBind } from './guest_memfd';
import { MEMSLOT_BYTES, USER_MEM_SLOTS } from './layout';
import { PRODUCER_SLOT } from './losses';
import { initMemslotMixed, wantMemslotMixed } from './mem_attributes';
import {
  DIRTY_LEVEL,
  dirtyTree,
  endGfnOf,
  linkSlot,
  MEM_GUEST_MEMFD,
  MEM_LOG_DIRTY_PAGES,
  MEM_READONLY,
  Memslot,
  MIXED_1G_LEVEL,
  MIXED_2M_LEVEL,
  memslotAt,
  mixedTree,
  slotOverlaps,
  unlinkSlot,
} from './memslots';
import { unmapGfnRange } from './mmu';
import { freeSubtree } from './page_table';
import { PAUSE_SLOT_INVALID, pausePoint } from './pause';
import { EBUSY, EEXIST, EINVAL, STATUS_CAPACITY, STATUS_SLOTS_FULL } from './status';
import { maxGfnExclusive, nextRoot, putRoot, ROOT_DIRECT, tdpMmuZapRoot, wantScatteredWalks } from './tdp_mmu';
import { flushRemoteTlbs, REQ_FREE_OBSOLETE_ROOTS } from './tlb';
import {
  EV_COMMIT_REGION,
  EV_FLUSH_SHADOW_MEMSLOT,
  EV_INV_ROOTS,
  EV_MMIO_GEN,
  EV_RECLAIMED,
  EV_REQ,
  EV_SET_MEMSLOT,
  EV_SWAP_MEMSLOTS,
  EV_ZAP_ALL_FAST,
  EV_ZAP_INV_ROOTS,
  trace,
  trace2,
} from './trace';
import { KVM_FILTER_PRIVATE, KVM_FILTER_SHARED, MAY_BLOCK, ONLY_PRIVATE, ONLY_SHARED } from './vendor';

const KVM_MR_CREATE: u32 = 0;
const KVM_MR_DELETE: u32 = 1;
const KVM_MR_MOVE: u32 = 2;
const KVM_MR_FLAGS_ONLY: u32 = 3;

/** KVM_MEM_MAX_NR_PAGES */
const MEM_MAX_NR_PAGES: u64 = ((<u64>1) << 31) - 1;
/** TASK_SIZE_MAX with 4-level host page tables. */
const USER_END: u64 = ((<u64>1) << 47) - 4096;

/**
 * KVM_SET_USER_MEMORY_REGION (version 1) and 2. Returns 0 or -errno in the order of the kernel's checks.
 * `fdKind` says what the guest_memfd descriptor is (guest_memfd.ts).
 * Mirrors: __kvm_set_memory_region()
 */
export function vmSetMemoryRegion(
  version: u32,
  slotField: u32,
  flags: u32,
  gpa: u64,
  size: u64,
  hva: u64,
  fd: i32,
  fdKind: u32,
  gmemOffset: u64,
): i32 {
  if (version == 1 && (flags & ~(MEM_LOG_DIRTY_PAGES | MEM_READONLY)) != 0) return -EINVAL;
  const asId = slotField >> 16;
  const id = slotField & 0xffff;
  if (id >= USER_MEM_SLOTS) return -EINVAL;
  let valid = MEM_LOG_DIRTY_PAGES;
  if (hasPrivateMem()) valid |= MEM_GUEST_MEMFD;
  if (flags & MEM_GUEST_MEMFD) valid &= ~MEM_LOG_DIRTY_PAGES;
  else valid |= MEM_READONLY;
  if (flags & ~valid) return -EINVAL;
  if ((size & 4095) != 0) return -EINVAL;
  if ((gpa & 4095) != 0) return -EINVAL;
  if ((hva & 4095) != 0 || size > USER_END || hva > USER_END - size) return -EINVAL;
  const bound = (flags & MEM_GUEST_MEMFD) != 0;
  if (bound && ((gmemOffset & 4095) != 0 || gmemOffset + size < gmemOffset)) return -EINVAL;
  if (asId >= ctl.asCount) return -EINVAL;
  if (gpa + size < gpa) return -EINVAL;
  const npages = size >> 12;
  if (npages > MEM_MAX_NR_PAGES) return -EINVAL;
  const slot = memslotAt(asId, id);
  const exists = slot.used != 0;
  if (size == 0) {
    if (!exists) return -EINVAL;
    return swapWouldWait() ? -EBUSY : deleteSlot(slot);
  }
  const baseGfn = gpa >> 12;
  let change = KVM_MR_CREATE;
  if (exists) {
    if (bound) return -EINVAL;
    if (hva != slot.hva || npages != slot.npages) return -EINVAL;
    if (((flags ^ slot.flags) & (MEM_READONLY | MEM_GUEST_MEMFD)) != 0) return -EINVAL;
    if (baseGfn != slot.baseGfn) change = KVM_MR_MOVE;
    else if (flags != slot.flags) change = KVM_MR_FLAGS_ONLY;
    else return 0;
  }
  if (change != KVM_MR_FLAGS_ONLY && slotOverlaps(asId, id, baseGfn, baseGfn + npages)) return -EEXIST;
  let file: i32 = 0;
  if (bound) {
    file = gmemCheckBind(fd, fdKind, gmemOffset, size);
    if (file < 0) return file;
  }
  // A new slot is refused before the slots change; a move has made the old one INVALID by then.
  if (swapWouldWait() && (change != KVM_MR_CREATE || !beyondMaxGfn(baseGfn, npages))) return -EBUSY;
  if (change == KVM_MR_CREATE) {
    if (ctl.slotsPages + npages > ctl.slotsPagesMax) return STATUS_SLOTS_FULL;
    return createSlot(asId, id, flags, baseGfn, npages, hva, <u32>file, gmemOffset >> 12);
  }
  return change == KVM_MR_MOVE ? moveSlot(slot, flags, baseGfn) : reflagSlot(slot, flags);
}

/**
 * Whether the kernel would sleep before it changes the slots: until every notifier start has its end (R-INV-6), and
 * until no fault is between its phases (SRCU).
 */
function swapWouldWait(): bool {
  if (ctl.notifierActive != 0) return true;
  for (let id: u32 = 0; id < ctl.faultHighWater; id++) if (faultIsBegun(id)) return true;
  return false;
}

/** Whether no root can map all of [baseGfn, end). Mirrors: kvm_arch_prepare_memory_region() */
function beyondMaxGfn(baseGfn: u64, npages: u64): bool {
  const last = baseGfn + npages - 1;
  return last >= maxGfnExclusive(0) || (ctl.directBits != 0 && (last & ctl.directBits) != 0);
}

/** Installs a new slot array: what is visible outside is a new MMIO generation. Mirrors: kvm_swap_active_memslots() */
function swapMemslots(asId: u32): void {
  trace(EV_SWAP_MEMSLOTS, 0, asId, 0);
  let generation: u32;
  if (asId == 0) {
    ctl.mmioGen0 += ctl.asCount;
    generation = ctl.mmioGen0;
  } else {
    ctl.mmioGen1 += ctl.asCount;
    generation = ctl.mmioGen1;
  }
  trace(EV_MMIO_GEN, 0, 0, <u64>generation);
}

function createSlot(
  asId: u32,
  id: u32,
  flags: u32,
  baseGfn: u64,
  npages: u64,
  hva: u64,
  file: u32,
  gmemPgoff: u64,
): i32 {
  wantNothing();
  wantNewSlot(npages);
  wantBoundAttributes(file, gmemPgoff, baseGfn, npages);
  if (!reserveWanted()) return STATUS_CAPACITY;
  trace(EV_SET_MEMSLOT, 0, KVM_MR_CREATE, 0);
  if (beyondMaxGfn(baseGfn, npages)) return -EINVAL;
  const slot = memslotAt(asId, id);
  memory.fill(changetype<usize>(slot), 0, MEMSLOT_BYTES);
  slot.baseGfn = baseGfn;
  slot.npages = npages;
  slot.hva = hva;
  slot.gmemPgoff = gmemPgoff;
  slot.id = id;
  slot.asId = asId;
  slot.flags = flags;
  slot.used = 1;
  slot.gmem = file;
  bindAttributes(slot);
  initMemslotMixed(slot);
  prepareDirtyBitmap(slot);
  linkSlot(slot);
  ctl.slotsPages += npages;
  swapMemslots(asId);
  trace(EV_COMMIT_REGION, 0, KVM_MR_CREATE, 0);
  return 0;
}

function freeSlotTrees(slot: Memslot): void {
  freeSubtree(mixedTree(slot, 2), MIXED_2M_LEVEL);
  freeSubtree(mixedTree(slot, 3), MIXED_1G_LEVEL);
}

function deleteSlot(slot: Memslot): i32 {
  wantNothing();
  wantZap();
  wantUnbindAttributes(slot);
  if (!reserveWanted()) return STATUS_CAPACITY;
  trace(EV_SET_MEMSLOT, 0, KVM_MR_DELETE, 0);
  invalidateSlot(slot);
  pausePoint(PAUSE_SLOT_INVALID);
  unlinkSlot(slot);
  unbindAttributes(slot);
  freeSlotTrees(slot);
  freeSubtree(dirtyTree(slot), DIRTY_LEVEL);
  ctl.slotsPages -= slot.npages;
  const asId = slot.asId;
  memory.fill(changetype<usize>(slot), 0, MEMSLOT_BYTES);
  swapMemslots(asId);
  trace(EV_COMMIT_REGION, 0, KVM_MR_DELETE, 0);
  return 0;
}

function moveSlot(slot: Memslot, flags: u32, baseGfn: u64): i32 {
  wantNothing();
  wantZap();
  wantNewSlot(slot.npages);
  if (!reserveWanted()) return STATUS_CAPACITY;
  trace(EV_SET_MEMSLOT, 0, KVM_MR_MOVE, 0);
  invalidateSlot(slot);
  pausePoint(PAUSE_SLOT_INVALID);
  slot.invalid = 0;
  if (beyondMaxGfn(baseGfn, slot.npages)) {
    // The slot comes back as it was; what was zapped stays zapped.
    relinkSlot(slot);
    swapMemslots(slot.asId);
    return -EINVAL;
  }
  unlinkSlot(slot);
  freeSlotTrees(slot);
  slot.baseGfn = baseGfn;
  slot.flags = flags;
  initMemslotMixed(slot);
  prepareDirtyBitmap(slot);
  linkSlot(slot);
  swapMemslots(slot.asId);
  trace(EV_COMMIT_REGION, 0, KVM_MR_MOVE, 0);
  return 0;
}

/** Any change replaces the slot in the orders: among equal hvas it comes last. Mirrors: kvm_replace_memslot() */
function relinkSlot(slot: Memslot): void {
  unlinkSlot(slot);
  linkSlot(slot);
}

function reflagSlot(slot: Memslot, flags: u32): i32 {
  wantNothing();
  wantZap();
  wantNewSlot(slot.npages);
  // Splits, write protection by pieces, and tables that give way stand at any place of the slot.
  wantScatteredWalks(slot.asId, slot.baseGfn, endGfnOf(slot));
  if (!reserveWanted()) return STATUS_CAPACITY;
  trace(EV_SET_MEMSLOT, 0, KVM_MR_FLAGS_ONLY, 0);
  slot.flags = flags;
  prepareDirtyBitmap(slot);
  relinkSlot(slot);
  swapMemslots(slot.asId);
  trace(EV_COMMIT_REGION, 0, KVM_MR_FLAGS_ONLY, 0);
  applyDirtyFlags(slot);
  return 0;
}

/** Adds what zapping one slot, or all roots, needs: boundaries in each root, in contents and in stale records. */
function wantZap(): void {
  want(64, 24);
}
/** Adds what a slot's mixed regions and its bitmap need. */
function wantNewSlot(npages: u64): void {
  if (hasPrivateMem()) wantMemslotMixed(npages);
  want(<u64>(DIRTY_LEVEL - 2), 1);
}

/** Makes a slot INVALID and zaps it, or all. Mirrors: kvm_invalidate_memslot(), kvm_arch_flush_shadow_memslot() */
function invalidateSlot(slot: Memslot): void {
  slot.invalid = 1;
  swapMemslots(slot.asId);
  trace2(EV_FLUSH_SHADOW_MEMSLOT, 0, slot.id, slot.baseGfn, slot.npages, 0);
  if (ctl.vmType == VM_DEFAULT && ctl.quirkSlotZapAll != 0) {
    zapAllFast();
  } else {
    zapMemslot(slot);
  }
  trace(EV_RECLAIMED, 0, 0, 0);
}

/** What a slot's deletion puts into its range: both mappings, in the words of each form (spec 2.3). */
function selectSlotDelete(): u32 {
  switch (ctl.filterForm) {
    case FORM_RFC_V4:
    case FORM_TDX_V18:
      return MAY_BLOCK | ONLY_PRIVATE | ONLY_SHARED;
    case FORM_GMEM_IN_PLACE:
    case FORM_ATTR_FILTER:
      return MAY_BLOCK | KVM_FILTER_PRIVATE | KVM_FILTER_SHARED;
    default:
      return MAY_BLOCK;
  }
}

/** Mirrors: kvm_mmu_zap_memslot() */
function zapMemslot(slot: Memslot): void {
  count(C_LOCK_SECTIONS, 1);
  ctl.producer = PRODUCER_SLOT;
  if (unmapGfnRange(slot, slot.baseGfn, endGfnOf(slot), 0, selectSlotDelete())) flushRemoteTlbs();
}

/**
 * Obsoletes every direct root, asks the vCPUs to drop theirs, then zaps them all. No TLB flush: a vCPU flushes as it
 * loads its new root. Mirrors: kvm_mmu_zap_all_fast()
 */
export function zapAllFast(): void {
  ctl.zapAllGen++;
  trace(EV_ZAP_ALL_FAST, 0, 0, 0);
  count(C_LOCK_SECTIONS, 1);
  invalidateRoots(ROOT_DIRECT);
  count(C_FREE_OBSOLETE_ROOTS, 1);
  trace(EV_REQ, 0, REQ_FREE_OBSOLETE_ROOTS, 0);
  count(C_LOCK_SECTIONS, 1);
  zapInvalidatedRoots(true);
}

/** Mirrors: kvm_tdp_mmu_invalidate_roots() */
export function invalidateRoots(kind: u32): void {
  trace(EV_INV_ROOTS, 0, 0, 0);
  let root = nextRoot(0);
  while (root !== null) {
    if (root.kind == kind) root.invalid = 1;
    root = nextRoot(root.sequence);
  }
}

/** Zaps the invalid roots that have not been zapped yet. Mirrors: kvm_tdp_mmu_zap_invalidated_roots() */
export function zapInvalidatedRoots(sharedMode: bool): void {
  trace(EV_ZAP_INV_ROOTS, 0, 0, 0);
  let root = nextRoot(0);
  while (root !== null) {
    const sequence = root.sequence;
    if (root.invalid != 0 && root.zapped == 0) {
      tdpMmuZapRoot(root, sharedMode && root.kind == ROOT_DIRECT);
      root.zapped = 1;
      putRoot(root);
    }
    root = nextRoot(sequence);
  }
}
