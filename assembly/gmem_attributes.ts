// In-place conversion (form gmem-in-place): a page of guest_memfd is private or shared by an attribute of its own, and is the
// guest's memory either way.
//
// The attributes belong to the file, a tree keyed by page. The VM's own tree over gfns, which every fault reads, is their
// view through the bindings: it follows as a slot binds, as attributes change, and goes as a binding ends. Host accesses
// are through a mapping of the file that no memslot's userspace address meets.
// Source: "guest_memfd: In-place conversion support" v5 to v7 (spec 11.2); not merged. Left out: content flags, batches of
// pages on their way to the LRU.

import { setAttributes, wantAttributes } from './attributes';
import { reserveWanted, wantCuts, wantLeafTables, wantNothing } from './blocks';
import {
  C_ATTRIBUTE_XARRAY_OPS,
  C_GMEM_HOST_PAGES_UNMAPPED,
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
  GMEM_MMAP,
  Gmem,
  gmemAt,
  gmemByHandle,
  npagesOf,
  PAGE_FOLIO,
  PAGE_MAPPED,
  PAGE_PINNED,
  PAGE_POISONED,
  PAGE_RESIDENT,
  PAGE_WRITTEN,
  PAGES_LEVEL,
  pagesTree,
} from './gmems';
import {
  allocatePages,
  gmemContentSelector,
  gmemInvalidateBegin,
  gmemInvalidateEnd,
  wantBindings,
  wantPages,
} from './guest_memfd';
import { PRODUCER_GMEM_ATTRIBUTES } from './losses';
import { postSetMemoryAttributes, wantMixed } from './mem_attributes';
import { BY_GFN, endGfnOf, Memslot, slotAtPlace, slotCount } from './memslots';
import { treeCount, treeFlags, treeModify, treeRunEnd, treeSet } from './page_table';
import { PAUSE_ATTRIBUTES_STORED, PAUSE_ATTRIBUTES_ZAPPED, pausePoint } from './pause';
import { EAGAIN, EBADF, EFAULT, EINVAL, EIO, ENODEV, ENOENT, ENOTTY, STATUS_CAPACITY } from './status';
import {
  KVM_FILTER_PRIVATE,
  KVM_FILTER_SHARED,
  KVM_MEMORY_ATTRIBUTE_PRIVATE,
  MAY_BLOCK,
  vendorGmemInvalidate,
  wantGmemInvalidate,
} from './vendor';

// --- The view through the bindings -----------------------------------------------------------------------------------

/** Adds what copying a file's attributes to the gfns [baseGfn, baseGfn + npages) needs: a cut at each end of a run. */
export function wantBoundAttributes(file: u32, gmemPgoff: u64, baseGfn: u64, npages: u64): void {
  if (ctl.filterForm != FORM_GMEM_IN_PLACE || file == 0) return;
  const tree = attributesTree(gmemAt(file - 1));
  const end = gmemPgoff + npages;
  let page = gmemPgoff;
  while (page < end) {
    const run = treeRunEnd(tree, PAGES_LEVEL, page, end);
    wantAttributes(page - gmemPgoff + baseGfn, run - gmemPgoff + baseGfn);
    page = run;
  }
}

/** The gfns of a new binding take the attributes of its file. Requires: wantBoundAttributes() is reserved. */
export function bindAttributes(slot: Memslot): void {
  if (ctl.filterForm != FORM_GMEM_IN_PLACE || slot.gmem == 0) return;
  const tree = attributesTree(gmemAt(slot.gmem - 1));
  const end = slot.gmemPgoff + slot.npages;
  const offset = slot.baseGfn - slot.gmemPgoff;
  let page = slot.gmemPgoff;
  while (page < end) {
    const run = treeRunEnd(tree, PAGES_LEVEL, page, end);
    const isPrivate = treeFlags(tree, PAGES_LEVEL, page) != 0;
    setAttributes(page + offset, run + offset, isPrivate);
    page = run;
  }
}

/** Adds what unbindAttributes() needs. */
export function wantUnbindAttributes(slot: Memslot): void {
  if (ctl.filterForm == FORM_GMEM_IN_PLACE && slot.gmem != 0) wantAttributes(slot.baseGfn, endGfnOf(slot));
}

/** A binding ends: nothing says any more that its gfns are private. Requires: wantUnbindAttributes() is reserved. */
export function unbindAttributes(slot: Memslot): void {
  if (ctl.filterForm != FORM_GMEM_IN_PLACE || slot.gmem == 0) return;
  setAttributes(slot.baseGfn, endGfnOf(slot), false);
}

// --- KVM_SET_MEMORY_ATTRIBUTES2 --------------------------------------------------------------------------------------

/** What a conversion invalidates: what the new attributes leave behind, or, by the bug of July 2026, what the range holds. */
function conversionSelector(gmem: Gmem, start: u64, end: u64, toPrivate: bool): u32 {
  if (ctl.gmemFilterByTarget == 0) return gmemContentSelector(gmem, start, end);
  return MAY_BLOCK | (toPrivate ? KVM_FILTER_SHARED : KVM_FILTER_PRIVATE);
}

/** The first page of [start, end) that is PAGE_PINNED, or PAGE_POISONED, as `flag` says; `end` if none. */
function firstPage(gmem: Gmem, start: u64, end: u64, flag: u32): u64 {
  const tree = pagesTree(gmem);
  if (treeCount(tree, PAGES_LEVEL, start, end, PAGE_RESIDENT | flag) == 0) return end;
  let page = start;
  while (page < end) {
    if ((treeFlags(tree, PAGES_LEVEL, page) & flag) != 0) return page;
    page = treeRunEnd(tree, PAGES_LEVEL, page, end);
  }
  return end;
}

/**
 * KVM_SET_MEMORY_ATTRIBUTES2 on the file: makes [offset, offset + size) bytes private or shared. Returns 0 or -errno; of
 * -EAGAIN result0 is the page whose folio has an elevated refcount: the host's mappings are gone then, nothing else.
 */
export function gmemSetAttributes(fd: i32, serial: u32, offset: u64, size: u64, attributes: u64, flags: u64): i32 {
  const file = gmemByHandle(fd, serial);
  if (file == 0) return -EBADF;
  if (ctl.filterForm != FORM_GMEM_IN_PLACE) return -ENOTTY;
  const gmem = gmemAt(file - 1);
  if (flags != 0) return -EINVAL;
  const supported: u64 = hasPrivateMem() ? KVM_MEMORY_ATTRIBUTE_PRIVATE : 0;
  if ((attributes & ~supported) != 0) return -EINVAL;
  if (size == 0 || offset + size < offset) return -EINVAL;
  if ((offset & 4095) != 0 || (size & 4095) != 0 || offset + size > gmem.sizeBytes) return -EINVAL;
  const start = offset >> 12;
  const end = (offset + size) >> 12;
  const toPrivate = attributes != 0;
  const tree = attributesTree(gmem);
  if (treeCount(tree, PAGES_LEVEL, start, end, 1) == (toPrivate ? end - start : 0)) return 0;
  if (!reserveConversion(gmem, file, start, end)) return STATUS_CAPACITY;
  if (toPrivate) {
    unmapFromHost(gmem, start, end);
    const pinned = firstPage(gmem, start, end, PAGE_PINNED);
    if (pinned < end) {
      ctl.result0 = <f64>pinned;
      return -EAGAIN;
    }
  }
  ctl.producer = PRODUCER_GMEM_ATTRIBUTES;
  const met = gmemInvalidateBegin(file, start, end, conversionSelector(gmem, start, end, toPrivate), attributes);
  if (ctl.splitFailed != 0) {
    gmemInvalidateEnd(met);
    return -EIO;
  }
  pausePoint(PAUSE_ATTRIBUTES_ZAPPED);
  if (!toPrivate) leavePrivate(gmem, start, end);
  treeSet(tree, PAGES_LEVEL, start, end, 1, toPrivate ? 1 : 0);
  for (let place: u32 = 0; place < slotCount(0); place++) {
    const slot = slotAtPlace(0, BY_GFN, place);
    if (!boundPart(slot, file, start, end)) continue;
    setAttributes(partStart, partEnd, toPrivate);
  }
  // A maple tree: one store, whatever the range.
  count(C_ATTRIBUTE_XARRAY_OPS, 1);
  pausePoint(PAUSE_ATTRIBUTES_STORED);
  gmemInvalidateEnd(met);
  for (let place: u32 = 0; place < slotCount(0); place++) {
    const slot = slotAtPlace(0, BY_GFN, place);
    if (boundPart(slot, file, start, end)) postSetMemoryAttributes(slot, partStart, partEnd, attributes);
  }
  return 0;
}

let partStart: u64 = 0;
let partEnd: u64 = 0;
/** The gfns of `slot` that show pages [start, end) of `file`, in partStart and partEnd; false if none do. */
function boundPart(slot: Memslot, file: u32, start: u64, end: u64): bool {
  const first = slot.gmemPgoff;
  if (slot.gmem != file || first >= end || first + slot.npages <= start) return false;
  partStart = slot.baseGfn + (max(first, start) - first);
  partEnd = slot.baseGfn + (min(first + slot.npages, end) - first);
  return true;
}

function reserveConversion(gmem: Gmem, file: u32, start: u64, end: u64): bool {
  wantNothing();
  wantCuts(attributesTree(gmem), PAGES_LEVEL, start, end);
  wantPages(gmem, start, end);
  wantGmemInvalidate(gmem, start, end);
  wantBindings(file, start, end);
  for (let place: u32 = 0; place < slotCount(0); place++) {
    const slot = slotAtPlace(0, BY_GFN, place);
    if (!boundPart(slot, file, start, end)) continue;
    wantAttributes(partStart, partEnd);
    for (let level = 2; level <= 3; level++) {
      wantMixed(slot, level, partStart);
      wantMixed(slot, level, partEnd);
    }
  }
  return reserveWanted();
}

/** Takes pages [start, end) out of the host's page tables. */
function unmapFromHost(gmem: Gmem, start: u64, end: u64): void {
  const mapped = PAGE_RESIDENT | PAGE_MAPPED;
  count(C_GMEM_HOST_PAGES_UNMAPPED, treeModify(pagesTree(gmem), PAGES_LEVEL, start, end, mapped, PAGE_MAPPED, 0));
}

/** What the guest had in private pages that become shared: SNP's host can't read it, a TD lost it with the mapping. */
function leavePrivate(gmem: Gmem, start: u64, end: u64): void {
  vendorGmemInvalidate(gmem, start, end);
  const written = PAGE_RESIDENT | PAGE_WRITTEN;
  if (ctl.vmType == VM_TDX) return;
  const pages = treeModify(pagesTree(gmem), PAGES_LEVEL, start, end, written, PAGE_WRITTEN, 0);
  if (ctl.vmType == VM_SNP) count(C_PRIVATE_PAGES_LOST, pages);
}

// --- The host's side -------------------------------------------------------------------------------------------------

/**
 * The VMM touches [offset, offset + length) bytes through its mapping of the file. -ENODEV: the file can't be mapped;
 * -EFAULT: where a SIGBUS would come, beyond the file, on a private or on a poisoned page; what was touched before stays.
 */
export function gmemHostAccess(fd: i32, serial: u32, offset: u64, length: u64): i32 {
  const file = gmemByHandle(fd, serial);
  if (file == 0) return -EBADF;
  const gmem = gmemAt(file - 1);
  if ((gmem.flags & GMEM_MMAP) == 0) return -ENODEV;
  if (length == 0) return 0;
  const start = offset >> 12;
  const npages = npagesOf(gmem);
  if (offset + length < offset || start >= npages) return -EFAULT;
  const wanted = ((offset + length - 1) >> 12) + 1;
  const attributes = attributesTree(gmem);
  const isPrivate = treeFlags(attributes, PAGES_LEVEL, start) != 0;
  const sharedEnd = min(treeRunEnd(attributes, PAGES_LEVEL, start, wanted), npages);
  if (isPrivate) return -EFAULT;
  const end = firstPage(gmem, start, sharedEnd, PAGE_POISONED);
  if (end == start) return -EFAULT;
  wantNothing();
  wantPages(gmem, start, end);
  wantLeafTables(pagesTree(gmem), PAGES_LEVEL, start, end);
  if (!reserveWanted()) return STATUS_CAPACITY;
  allocatePages(gmem, start, end);
  treeModify(pagesTree(gmem), PAGES_LEVEL, start, end, PAGE_RESIDENT, 0, PAGE_MAPPED);
  return end < wanted ? -EFAULT : 0;
}

/**
 * Someone takes, or drops, a reference of the folio of page `page`. -EINVAL beyond the file, -ENOENT if it is not
 * allocated.
 */
export function gmemPin(fd: i32, serial: u32, page: u64, pin: u32): i32 {
  const file = gmemByHandle(fd, serial);
  if (file == 0) return -EBADF;
  const gmem = gmemAt(file - 1);
  if (page >= npagesOf(gmem)) return -EINVAL;
  const tree = pagesTree(gmem);
  const flags = treeFlags(tree, PAGES_LEVEL, page);
  if (flags == 0) return -ENOENT;
  const start = (flags & PAGE_FOLIO) != 0 ? page & ~511 : page;
  const end = (flags & PAGE_FOLIO) != 0 ? start + 512 : page + 1;
  wantNothing();
  wantPages(gmem, start, end);
  if (!reserveWanted()) return STATUS_CAPACITY;
  treeModify(tree, PAGES_LEVEL, start, end, PAGE_RESIDENT, pin != 0 ? 0 : PAGE_PINNED, pin != 0 ? PAGE_PINNED : 0);
  return 0;
}
