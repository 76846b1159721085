// guest_memfd: create, bind, allocate, punch hole, release, memory error.
//
// Folios are of order 0, as in the kernels of the profiles, unless the file was created with 2M folios: then each absent
// page brings the whole aligned block with it if all of that is absent and inside the file (a what-if: docs/fidelity.md).
// Mirrors: virt/kvm/guest_memfd.c. Left out: an inode shared by two VMs.

import { setAttributes, wantAttributes } from './attributes';
import { reserveWanted, wantCuts, wantLeafTables, wantNothing } from './blocks';
import {
  C_GMEM_PAGES_ALLOCATED,
  C_GMEM_PAGES_FREED,
  C_LOCK_SECTIONS,
  C_PAGES_LEAKED,
  C_PRIVATE_PAGES_LOST,
  count,
  ctl,
  FORM_GMEM_IN_PLACE,
  hasPrivateMem,
  VM_SNP,
  VM_TDX,
} from './control';
import {
  attributesTree,
  GMEM_INIT_SHARED,
  GMEM_MMAP,
  Gmem,
  gmemAt,
  gmemByFd,
  gmemByHandle,
  npagesOf,
  PAGE_FOLIO,
  PAGE_MAPPED,
  PAGE_OWNED,
  PAGE_POISONED,
  PAGE_RESIDENT,
  PAGE_TOUCHED,
  PAGE_WRITTEN,
  PAGES_LEVEL,
  pagesTree,
} from './gmems';
import { mmuInvalidateBegin, mmuInvalidateEnd, mmuInvalidateRangeAdd } from './invalidate';
import { GMEM_BYTES, GMEMS_MAX } from './layout';
import { PRODUCER_GMEM_ERROR, PRODUCER_GMEM_PUNCH, PRODUCER_GMEM_RELEASE } from './losses';
import { guardEnds } from './mem_attributes';
import { BY_GFN, endGfnOf, Memslot, slotAtPlace, slotCount } from './memslots';
import { reserveAmplyForRanges, unmapGfnRange, wantGfnRange } from './mmu';
import { freeSubtree, treeCount, treeFlags, treeModify, treeRunEnd, treeSet } from './page_table';
import { PAUSE_GMEM_ZAPPED, pausePoint } from './pause';
import { EBADF, EFAULT, EHWPOISON, EINVAL, EIO, ENOMEM, EOPNOTSUPP, STATUS_CAPACITY } from './status';
import { flushRemoteTlbs } from './tlb';
import { EV_GMEM_INVAL_BEGIN, trace2 } from './trace';
import {
  KVM_FILTER_PRIVATE,
  KVM_FILTER_SHARED,
  MAY_BLOCK,
  SELECT_GMEM,
  vendorGmemForget,
  vendorGmemHasRoom,
  vendorGmemInvalidate,
  vendorGmemPrepare,
  vendorPrivateMaxMappingLevel,
  vendorPrivateRunEnd,
  wantGmemInvalidate,
} from './vendor';

const FALLOC_KEEP_SIZE: u32 = 1;
const FALLOC_PUNCH_HOLE: u32 = 2;
const LAST_INDEX: u64 = ~(<u64>0);

/** Pages of a 2M folio. */
const FOLIO: u64 = 512;

/**
 * KVM_CREATE_GUEST_MEMFD. `fd` was chosen by the caller; `folioOrder` is 0 or 9. Returns 0 or -errno.
 * Mirrors: kvm_gmem_create()
 */
export function gmemCreate(size: u64, flags: u64, fd: i32, folioOrder: u32): i32 {
  const inPlace = ctl.filterForm == FORM_GMEM_IN_PLACE;
  const known: u64 = inPlace ? GMEM_MMAP | GMEM_INIT_SHARED : 0;
  if ((flags & ~known) != 0) return -EINVAL;
  if (<i64>size <= 0 || (size & 4095) != 0) return -EINVAL;
  for (let index: u32 = 0; index < GMEMS_MAX; index++) {
    const gmem = gmemAt(index);
    if (gmem.used != 0) continue;
    const allPrivate = inPlace && hasPrivateMem() && (flags & GMEM_INIT_SHARED) == 0;
    memory.fill(changetype<usize>(gmem), 0, GMEM_BYTES);
    if (allPrivate) {
      wantNothing();
      wantCuts(attributesTree(gmem), PAGES_LEVEL, 0, size >> 12);
      if (!reserveWanted()) return STATUS_CAPACITY;
      treeSet(attributesTree(gmem), PAGES_LEVEL, 0, size >> 12, 1, 1);
    }
    gmem.flags = <u32>flags;
    gmem.used = 1;
    gmem.open = 1;
    gmem.fd = fd;
    ctl.gmemSerial++;
    gmem.serial = ctl.gmemSerial;
    ctl.result0 = <f64>gmem.serial;
    gmem.sizeBytes = size;
    gmem.folioOrder = folioOrder;
    vendorGmemForget(gmem);
    ctl.openGmems++;
    if (index >= ctl.gmemHighWater) ctl.gmemHighWater = index + 1;
    return 0;
  }
  return -ENOMEM;
}

/**
 * Checks that `slot` can be bound to pages [offset, offset + size) of `fd`. Returns index + 1 or -errno.
 * Mirrors: kvm_gmem_bind()
 */
export function gmemCheckBind(fd: i32, fdKind: u32, offset: u64, size: u64): i32 {
  if (fdKind == FD_NOT_OPEN) return -EBADF;
  if (fdKind != FD_GMEM_OF_THIS_VM) return -EINVAL;
  const found = gmemByFd(fd);
  if (found == 0) return -EINVAL;
  const gmem = gmemAt(found - 1);
  if (<i64>offset < 0 || (offset & 4095) != 0 || offset + size > gmem.sizeBytes) return -EINVAL;
  const start = offset >> 12;
  const end = start + (size >> 12);
  for (let asId: u32 = 0; asId < ctl.asCount; asId++) {
    for (let place: u32 = 0; place < slotCount(asId); place++) {
      const slot = slotAtPlace(asId, BY_GFN, place);
      if (slot.gmem == found && slot.gmemPgoff < end && slot.gmemPgoff + slot.npages > start) return -EINVAL;
    }
  }
  return <i32>found;
}
/** What a descriptor given to an ioctl is, as the caller's table knows it. */
export const FD_NOT_OPEN: u32 = 0;
export const FD_OTHER: u32 = 1;
export const FD_GMEM_OF_THIS_VM: u32 = 2;

// --- Invalidation ----------------------------------------------------------------------------------------------------

/**
 * The next piece, from `first` up to `last`, in which the kernel's xarray stores a binding [first, last].
 * Mirrors: xa_store_range(), set_range(), lib/xarray.c
 */
function pieceEnd(first: u64, last: u64): u64 {
  let at = first;
  let shift: u64 = 0;
  let reach = last - first;
  let order: u64 = 63;
  while ((at & 63) == 0) {
    if (reach < 63 || (reach == 63 && order < 63)) break;
    shift += 6;
    if (order == 63) order = reach & 63;
    reach >>= 6;
    at >>= 6;
  }
  order = at & 63;
  if (order + reach > 63) reach = 63 - order;
  if (((at + reach + 1) << shift) - 1 > last) reach--;
  return (at + reach + 1) << shift;
}

/** The bound slot of `file` whose pages begin lowest at or after `fromPage`; null at the end. */
function nextBinding(file: u32, fromPage: u64): Memslot | null {
  let best: Memslot | null = null;
  for (let place: u32 = 0; place < slotCount(0); place++) {
    const slot = slotAtPlace(0, BY_GFN, place);
    if (slot.gmem != file || slot.gmemPgoff < fromPage) continue;
    if (best === null || slot.gmemPgoff < best.gmemPgoff) best = slot;
  }
  return best;
}

/**
 * Zaps what maps pages [start, end) of the file, once for each piece of a binding that the range meets (R-GMEM-5's
 * correction in host-model 2.1). Returns whether any binding was met: then gmemInvalidateEnd() is due.
 * Mirrors: kvm_gmem_invalidate_begin()
 */
export function gmemInvalidateBegin(file: u32, start: u64, end: u64, selector: u32, attributes: u64): bool {
  trace2(EV_GMEM_INVAL_BEGIN, 0, 0, start, end, 0);
  ctl.splitFailed = 0;
  // Only a what-if maps a file by 2M: then no leaf may come to span the range meanwhile.
  const mayBeHuge = gmemAt(file - 1).folioOrder != 0;
  let met = false;
  let flush: bool = false;
  let slot = nextBinding(file, 0);
  while (slot !== null) {
    const first = slot.gmemPgoff;
    const after = first + slot.npages;
    if (first < end && after > start) {
      const from = slot.baseGfn + (max(first, start) - first);
      const to = slot.baseGfn + (min(after, end) - first);
      let piece = first;
      while (piece < after) {
        const next = pieceEnd(piece, after - 1);
        // Where a leaf could not be split the rest is left alone: the operation is refused.
        if (piece < end && next > start && ctl.splitFailed == 0) {
          if (!met) {
            met = true;
            count(C_LOCK_SECTIONS, 1);
            mmuInvalidateBegin();
          }
          mmuInvalidateRangeAdd(from, to);
          if (mayBeHuge) guardEnds(slot, from, to, 2);
          flush = unmapGfnRange(slot, from, to, attributes, selector) || flush;
        }
        piece = next;
      }
    }
    slot = nextBinding(file, first + 1);
  }
  if (flush) flushRemoteTlbs();
  return met;
}

export function gmemInvalidateEnd(met: bool): void {
  if (!met) return;
  count(C_LOCK_SECTIONS, 1);
  mmuInvalidateEnd();
}

/** What the pages [start, end) hold: a selector of the mappings that there can be (spec 2.3, G). */
export function gmemContentSelector(gmem: Gmem, start: u64, end: u64): u32 {
  if (ctl.filterForm != FORM_GMEM_IN_PLACE) return SELECT_GMEM;
  end = min(end, npagesOf(gmem));
  if (start >= end) return MAY_BLOCK;
  const privatePages = treeCount(attributesTree(gmem), PAGES_LEVEL, start, end, 1);
  let selector = MAY_BLOCK;
  if (privatePages != 0) selector |= KVM_FILTER_PRIVATE;
  if (privatePages != end - start) selector |= KVM_FILTER_SHARED;
  return selector;
}

/** A folio that is freed in part is 512 small ones from then on. */
function splitFolioAt(gmem: Gmem, page: u64): void {
  const tree = pagesTree(gmem);
  const block = page & ~(FOLIO - 1);
  if (page == block || (treeFlags(tree, PAGES_LEVEL, page) & PAGE_FOLIO) == 0) return;
  treeModify(tree, PAGES_LEVEL, block, block + FOLIO, PAGE_RESIDENT | PAGE_FOLIO, PAGE_FOLIO, 0);
}

/** Frees pages [start, end): what the guest had in them is gone. */
function truncatePages(gmem: Gmem, start: u64, end: u64): void {
  const tree = pagesTree(gmem);
  if (gmem.folioOrder != 0) {
    splitFolioAt(gmem, start);
    splitFolioAt(gmem, end);
  }
  vendorGmemInvalidate(gmem, start, end);
  const freed = treeCount(tree, PAGES_LEVEL, start, end, PAGE_RESIDENT);
  count(C_PRIVATE_PAGES_LOST, treeCount(tree, PAGES_LEVEL, start, end, PAGE_RESIDENT | PAGE_WRITTEN));
  count(C_GMEM_PAGES_FREED, freed);
  // What the TD still owns can't be used by the host again.
  if (ctl.vmType == VM_TDX) count(C_PAGES_LEAKED, treeCount(tree, PAGES_LEVEL, start, end, PAGE_RESIDENT | PAGE_OWNED));
  if (freed != 0) treeSet(tree, PAGES_LEVEL, start, end, 1, 0);
}

/** Adds what changing the pages [start, end) needs, whole folios at their ends included. */
export function wantPages(gmem: Gmem, start: u64, end: u64): void {
  const tree = pagesTree(gmem);
  wantCuts(tree, PAGES_LEVEL, start, end);
  if (gmem.folioOrder == 0) return;
  wantCuts(tree, PAGES_LEVEL, start & ~(FOLIO - 1), end & ~(FOLIO - 1));
  wantCuts(tree, PAGES_LEVEL, (start | (FOLIO - 1)) + 1, (end | (FOLIO - 1)) + 1);
}

/** Reserves for zapping pages [start, end) in each binding that they meet, and for freeing them. */
function reserveInvalidation(file: u32, start: u64, end: u64): bool {
  const gmem = gmemAt(file - 1);
  const isPlain = ctl.vmType != VM_SNP && ctl.filterForm != FORM_GMEM_IN_PLACE;
  if (isPlain && reserveAmplyForRanges(slotCount(0) + 1)) return true;
  wantNothing();
  wantPages(gmem, start, end);
  wantGmemInvalidate(gmem, start, end);
  wantBindings(file, start, end);
  return reserveWanted();
}

/** Adds what zapping pages [start, end) in each binding that they meet needs, and what its end would. */
export function wantBindings(file: u32, start: u64, end: u64): void {
  for (let place: u32 = 0; place < slotCount(0); place++) {
    const slot = slotAtPlace(0, BY_GFN, place);
    const first = slot.gmemPgoff;
    const after = first + slot.npages;
    if (slot.gmem != file || first >= end || after <= start) continue;
    wantGfnRange(slot, slot.baseGfn + (max(first, start) - first), slot.baseGfn + (min(after, end) - first));
    if (ctl.filterForm == FORM_GMEM_IN_PLACE) {
      wantAttributes(slot.baseGfn, endGfnOf(slot));
    }
  }
}

// --- System calls ----------------------------------------------------------------------------------------------------

/** fallocate(2) on the file. Mirrors: kvm_gmem_fallocate() and the checks of vfs_fallocate() before it */
export function gmemFallocate(fd: i32, serial: u32, mode: u32, offset: u64, length: u64): i32 {
  const file = gmemByHandle(fd, serial);
  if (file == 0) return -EBADF;
  const gmem = gmemAt(file - 1);
  if (<i64>offset < 0 || <i64>length <= 0) return -EINVAL;
  if ((mode & FALLOC_KEEP_SIZE) == 0) return -EOPNOTSUPP;
  if ((mode & ~(FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE)) != 0) return -EOPNOTSUPP;
  if (<i64>(offset + length) < 0) return -EFBIG;
  if ((offset & 4095) != 0 || (length & 4095) != 0) return -EINVAL;
  const start = offset >> 12;
  const end = (offset + length) >> 12;
  if (mode & FALLOC_PUNCH_HOLE) {
    if (!reserveInvalidation(file, start, end)) return STATUS_CAPACITY;
    ctl.producer = PRODUCER_GMEM_PUNCH;
    const met = gmemInvalidateBegin(file, start, end, gmemContentSelector(gmem, start, end), 0);
    if (ctl.splitFailed != 0) {
      gmemInvalidateEnd(met);
      return -EIO;
    }
    pausePoint(PAUSE_GMEM_ZAPPED);
    truncatePages(gmem, start, end);
    gmemInvalidateEnd(met);
    return 0;
  }
  if (offset + length > gmem.sizeBytes) return -EINVAL;
  wantNothing();
  wantPages(gmem, start, end);
  wantLeafTables(pagesTree(gmem), PAGES_LEVEL, start, end);
  if (!reserveWanted()) return STATUS_CAPACITY;
  allocatePages(gmem, start, end);
  return 0;
}
const EFBIG: i32 = 27;

/** Makes pages [start, end) resident; those that are keep their content. Requires: room is reserved. */
export function allocatePages(gmem: Gmem, start: u64, end: u64): void {
  const tree = pagesTree(gmem);
  let page = start;
  while (page < end) {
    const run = treeRunEnd(tree, PAGES_LEVEL, page, end);
    if (treeFlags(tree, PAGES_LEVEL, page) == 0) allocateRun(gmem, page, run);
    page = run;
  }
}

/** Allocates the folios of pages [start, end), all of them absent: of order 9 where the file has such and one fits. */
function allocateRun(gmem: Gmem, start: u64, end: u64): void {
  const tree = pagesTree(gmem);
  let page = start;
  while (page < end) {
    let to = end;
    let from = page;
    let flags = PAGE_RESIDENT;
    if (gmem.folioOrder != 0) {
      const block = page & ~(FOLIO - 1);
      const fits = block + FOLIO <= npagesOf(gmem);
      if (fits && treeCount(tree, PAGES_LEVEL, block, block + FOLIO, PAGE_RESIDENT) == 0) {
        // Blocks that lie in the run whole are absent like it; the last one may reach beyond and is looked at in turn.
        from = block;
        to = max(block + FOLIO, end & ~(FOLIO - 1));
        flags |= PAGE_FOLIO;
      } else {
        to = min(end, block + FOLIO);
      }
    }
    treeSet(tree, PAGES_LEVEL, from, to, 1, flags);
    count(C_GMEM_PAGES_ALLOCATED, to - from);
    page = to;
  }
}

/** Last close of the file: zaps every bound slot, takes the file from it, frees the pages. Mirrors: kvm_gmem_release() */
export function gmemRelease(fd: i32, serial: u32): i32 {
  const file = gmemByHandle(fd, serial);
  if (file == 0) return -EBADF;
  const gmem = gmemAt(file - 1);
  if (!reserveInvalidation(file, 0, gmem.sizeBytes >> 12)) return STATUS_CAPACITY;
  ctl.producer = PRODUCER_GMEM_RELEASE;
  const met = gmemInvalidateBegin(file, 0, LAST_INDEX, gmemContentSelector(gmem, 0, LAST_INDEX), 0);
  pausePoint(PAUSE_GMEM_ZAPPED);
  for (let place: u32 = 0; place < slotCount(0); place++) {
    const slot = slotAtPlace(0, BY_GFN, place);
    if (slot.gmem != file) continue;
    if (ctl.filterForm == FORM_GMEM_IN_PLACE) {
      setAttributes(slot.baseGfn, endGfnOf(slot), false);
    }
    slot.gmem = 0;
  }
  gmemInvalidateEnd(met);
  truncatePages(gmem, 0, gmem.sizeBytes >> 12);
  freeSubtree(pagesTree(gmem), PAGES_LEVEL);
  freeSubtree(attributesTree(gmem), PAGES_LEVEL);
  vendorGmemForget(gmem);
  gmem.open = 0;
  gmem.used = 0;
  ctl.openGmems--;
  return 0;
}

/** A hardware memory error in one page: its folio is zapped, never freed, later faults -EHWPOISON. Mirrors: kvm_gmem_error_folio() */
export function gmemMemoryError(fd: i32, serial: u32, page: u64): i32 {
  const file = gmemByHandle(fd, serial);
  if (file == 0) return -EBADF;
  const gmem = gmemAt(file - 1);
  if (page >= gmem.sizeBytes >> 12) return -EINVAL;
  const tree = pagesTree(gmem);
  const isFolio = (treeFlags(tree, PAGES_LEVEL, page) & PAGE_FOLIO) != 0;
  const start = isFolio ? page & ~(FOLIO - 1) : page;
  const end = isFolio ? start + FOLIO : page + 1;
  if (!reserveInvalidation(file, start, end)) return STATUS_CAPACITY;
  ctl.producer = PRODUCER_GMEM_ERROR;
  const met = gmemInvalidateBegin(file, start, end, gmemContentSelector(gmem, start, end), 0);
  if (ctl.splitFailed != 0) {
    gmemInvalidateEnd(met);
    return -EIO;
  }
  if (treeFlags(tree, PAGES_LEVEL, page) == 0) {
    treeSet(tree, PAGES_LEVEL, page, page + 1, 1, PAGE_RESIDENT | PAGE_POISONED);
    count(C_GMEM_PAGES_ALLOCATED, 1);
  } else {
    // Whoever had it mapped gets a SIGBUS instead.
    treeModify(tree, PAGES_LEVEL, start, end, PAGE_RESIDENT, PAGE_MAPPED, PAGE_POISONED);
  }
  gmemInvalidateEnd(met);
  return 0;
}

// --- Faults ----------------------------------------------------------------------------------------------------------

/** Pages from the one that gmemGetPfn() gave, at most its limit, that are resident and sound, and alike in level. */
export let gmemRunPages: u64 = 0;
/** The level up to which the folio and the vendor let the page be mapped. */
export let gmemLevel: i32 = 1;

/**
 * The page behind a gfn that guest_memfd backs, allocated on demand and up to `limitPages` more behind it; a private one is
 * prepared for the guest.
 * Returns 0 or -errno. Requires: reserveFault(). Mirrors: kvm_gmem_get_pfn(), kvm_gmem_prepare_folio()
 */
export function gmemGetPfn(slot: Memslot, gfn: u64, limitPages: u64, isPrivate: bool): i32 {
  if (slot.gmem == 0) return -EFAULT;
  const gmem = gmemAt(slot.gmem - 1);
  const page = gfn - slot.baseGfn + slot.gmemPgoff;
  const tree = pagesTree(gmem);
  const flags = treeFlags(tree, PAGES_LEVEL, page);
  if (flags & PAGE_POISONED) return -EHWPOISON;
  if (isPrivate && !vendorGmemHasRoom(gmem, slot)) return -ENOMEM;
  let run = treeRunEnd(tree, PAGES_LEVEL, page, page + limitPages);
  if (flags == 0) {
    allocateRun(gmem, page, run);
    if (gmem.folioOrder != 0) run = treeRunEnd(tree, PAGES_LEVEL, page, run);
  }
  if (isPrivate) {
    run = vendorPrivateRunEnd(gmem, page, run);
    vendorGmemPrepare(gmem, slot, page, run);
    run = vendorPrivateRunEnd(gmem, page, run);
  }
  gmemRunPages = run - page;
  // A folio is mapped whole only where gfns and pages of the file are aligned alike.
  const isFolio = gmem.folioOrder != 0 && (treeFlags(tree, PAGES_LEVEL, page) & PAGE_FOLIO) != 0;
  gmemLevel = isFolio && ((slot.baseGfn - slot.gmemPgoff) & (FOLIO - 1)) == 0 ? 2 : 1;
  if (gmemLevel > 1 && isPrivate) gmemLevel = min(gmemLevel, vendorPrivateMaxMappingLevel(gmem, page));
  return 0;
}

/** The file pages of the 2M region that `gfn` lies in; false if the slot maps it askew, or not whole. */
let blockStart: u64 = 0;
function hugeBlockOf(slot: Memslot, gfn: u64): bool {
  const base = gfn & ~511;
  if (slot.gmem == 0 || base < slot.baseGfn || base + 512 > endGfnOf(slot)) return false;
  blockStart = base - slot.baseGfn + slot.gmemPgoff;
  return (blockStart & 511) == 0;
}

/** Whether a private leaf of 2M may map `gfn`: its region is a folio of the file, and sound. */
export function gmemHasHugeBlock(slot: Memslot, gfn: u64): bool {
  if (!hugeBlockOf(slot, gfn)) return false;
  const tree = pagesTree(gmemAt(slot.gmem - 1));
  if ((treeFlags(tree, PAGES_LEVEL, blockStart) & PAGE_FOLIO) == 0) return false;
  return treeCount(tree, PAGES_LEVEL, blockStart, blockStart + 512, PAGE_RESIDENT | PAGE_POISONED) == 0;
}

/** The guest put content into private pages of `slot`. Requires: reserveFault(). */
export function gmemContentWritten(slot: Memslot, startGfn: u64, endGfn: u64): void {
  if (slot.gmem == 0) return;
  const offset = slot.gmemPgoff - slot.baseGfn;
  const tree = pagesTree(gmemAt(slot.gmem - 1));
  treeModify(tree, PAGES_LEVEL, startGfn + offset, endGfn + offset, PAGE_RESIDENT, 0, PAGE_WRITTEN | PAGE_TOUCHED);
}
