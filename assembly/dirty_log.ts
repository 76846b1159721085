// Dirty logging: enable, get, clear, disable, with eager splitting and the recovery of huge pages.
//
// A slot's bitmap is a tree over its pages. Words of 64 pages are what the kernel works in, so words are what is walked.
// Mirrors: virt/kvm/kvm_main.c (kvm_get_dirty_log_protect, kvm_clear_dirty_log_protect), arch/x86/kvm/x86.c
// (kvm_mmu_slot_apply_flags), arch/x86/kvm/mmu/mmu.c (kvm_arch_mmu_enable_log_dirty_pt_masked). Left out: PML, the ring.

import { reserveWanted, wantCuts, wantNothing, wantScattered } from './blocks';
import { zapCollapsible } from './collapse';
import { C_LOCK_SECTIONS, count, ctl } from './control';
import { BITMAP_BASE, IO_BASE, IO_BYTES, USER_MEM_SLOTS } from './layout';
import { DIRTY_LEVEL, dirtyTree, endGfnOf, MEM_LOG_DIRTY_PAGES, MEM_READONLY, Memslot, memslotAt } from './memslots';
import { atEnd, atFlags, freeSubtree, treeAt, treeClearMasked, treeMasks, treeSet } from './page_table';
import { EINVAL, ENOENT, STATUS_CAPACITY } from './status';
import {
  tdpMmuTrySplitHugePages,
  tdpMmuWriteProtectGfn,
  tdpMmuWrprotMask,
  tdpMmuWrprotRange,
  tdpMmuWrprotTable,
  wantScatteredWalks,
} from './tdp_mmu';
import { flushRemoteTlbsRange } from './tlb';
import { EV_CLEAR_DIRTY_MASK, EV_SPLIT_HUGE, EV_WRITE_PROTECT_GFN, EV_WRPROT_SLOT, trace, trace2 } from './trace';

/** KVM_DIRTY_LOG_INITIALLY_SET together with KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE */
function manualProtectAndInitSet(): bool {
  return (ctl.manualDirtyLog & 2) != 0;
}

/** Gives a slot that starts to be logged its bitmap. Mirrors: kvm_prepare_memory_region() */
export function prepareDirtyBitmap(slot: Memslot): void {
  if ((slot.flags & MEM_LOG_DIRTY_PAGES) == 0) {
    if (slot.hasDirty != 0) freeSubtree(dirtyTree(slot), DIRTY_LEVEL);
    slot.hasDirty = 0;
    return;
  }
  if (slot.hasDirty != 0) return;
  slot.hasDirty = 1;
  if (manualProtectAndInitSet()) treeSet(dirtyTree(slot), DIRTY_LEVEL, 0, slot.npages, 1, 1);
}

/** What toggling LOG_DIRTY_PAGES does to the page tables. Mirrors: kvm_mmu_slot_apply_flags() */
export function applyDirtyFlags(slot: Memslot): void {
  if (slot.flags & MEM_READONLY) return;
  if ((slot.flags & MEM_LOG_DIRTY_PAGES) == 0) {
    zapCollapsible(slot);
    return;
  }
  if (manualProtectAndInitSet()) return;
  const start = slot.baseGfn;
  const end = endGfnOf(slot);
  if (ctl.eagerPageSplit != 0) {
    trace2(EV_SPLIT_HUGE, 1 | (1 << 8), slot.id, start, end, 0);
    count(C_LOCK_SECTIONS, 1);
    tdpMmuTrySplitHugePages(slot.asId, start, end, 1);
  }
  trace(EV_WRPROT_SLOT, 1, slot.id, 0);
  count(C_LOCK_SECTIONS, 1);
  tdpMmuWrprotRange(slot.asId, start, end, 1);
  flushRemoteTlbsRange(start, slot.npages);
}

/** A page of a logged slot was made writable. Requires: reserveFault(). Mirrors: mark_page_dirty_in_slot() */
export function markPageDirty(slot: Memslot, gfn: u64): void {
  markPagesDirty(slot, gfn, gfn + 1);
}
export function markPagesDirty(slot: Memslot, startGfn: u64, endGfn: u64): void {
  if (slot.hasDirty == 0) return;
  treeSet(dirtyTree(slot), DIRTY_LEVEL, startGfn - slot.baseGfn, endGfn - slot.baseGfn, 1, 1);
}

/** Write-protects one word of pages whose bits in `mask` were taken. */
function enableLogMasked(slot: Memslot, offset: u64, mask: u64): void {
  const first = slot.baseGfn + offset;
  if (manualProtectAndInitSet()) {
    const start = first + <u64>ctz(mask);
    const last = first + 63 - <u64>clz(mask);
    if (ctl.eagerPageSplit != 0) {
      trace2(EV_SPLIT_HUGE, 1, slot.id, start, last + 1, 0);
      tdpMmuTrySplitHugePages(slot.asId, start, last + 1, 1);
    }
    trace(EV_WRITE_PROTECT_GFN, 0, 2, start);
    tdpMmuWriteProtectGfn(slot.asId, start, 2);
    if (((start + 511) & ~511) != ((last + 511) & ~511)) {
      trace(EV_WRITE_PROTECT_GFN, 0, 2, last);
      tdpMmuWriteProtectGfn(slot.asId, last, 2);
    }
  }
  trace2(EV_CLEAR_DIRTY_MASK, 0, slot.id, first, mask, 0);
  tdpMmuWrprotMask(slot.asId, first, mask);
}

/** The dirty bits of the word at page `offset`. */
function dirtyWord(slot: Memslot, offset: u64): u64 {
  let word: u64 = 0;
  let page = offset;
  const end = min(offset + 64, slot.npages);
  while (page < end) {
    treeAt(dirtyTree(slot), DIRTY_LEVEL, page);
    const run = min(atEnd, end);
    if (atFlags & 1) {
      const width = run - page;
      word |= (width == 64 ? ~(<u64>0) : ((<u64>1) << width) - 1) << (page - offset);
    }
    page = run;
  }
  return word;
}

/** The word at or after `offset` that has a dirty bit; the slot's end if none. */
function nextDirtyWord(slot: Memslot, offset: u64): u64 {
  let page = offset;
  while (page < slot.npages) {
    treeAt(dirtyTree(slot), DIRTY_LEVEL, page);
    if (atFlags & 1) return page & ~63;
    page = atEnd;
  }
  return slot.npages;
}

/** Of takeTable(): the pages of a leaf table whose bits are taken. */
const MASKS: usize = 896;

/** Whether takeTable() may be asked for the 512 pages from `page` on. Words are taken one by one where each is shown. */
function isTable(slot: Memslot, page: u64, first: u64, end: u64): bool {
  if ((ctl.traceOn | ctl.yieldArmed) != 0 || ctl.budget < Infinity) return false;
  // The last table of 1 GiB may fold the table that links it: a walk does that.
  return (slot.baseGfn & 511) == 0 && page >= first && page + 512 <= end && (~((slot.baseGfn + page) >> 9) & 511) != 0;
}

/**
 * Takes the bits of the 512 pages from `page` on, as clearDirtyLog() does word by word (`bitmapBytes` 0: as
 * getDirtyLogProtect() does). Returns whether there were any, or -1, with nothing done, if it must be done word by word.
 */
function takeTable(slot: Memslot, page: u64, firstPage: u64, bitmapBytes: u32): i32 {
  const tree = dirtyTree(slot);
  treeMasks(tree, DIRTY_LEVEL, page, MASKS);
  const isInitSet = manualProtectAndInitSet();
  // Walks of enableLogMasked(): split, write-protect the first gfn, write-protect the mask.
  const walksOfWord: u64 = isInitSet ? (ctl.eagerPageSplit != 0 ? 3 : 2) : 1;
  let walks: u64 = 0;
  let left: u64 = 0;
  for (let word = 0; word < 8; word++) {
    const ptr = MASKS + ((<usize>word) << 3);
    const dirty = load<u64>(ptr);
    let mask = dirty;
    if (bitmapBytes != 0) {
      const wordIndex = (((page - firstPage) >> 6) + <u64>word) % <u64>(bitmapBytes >> 3);
      mask &= load<u64>(BITMAP_BASE + <usize>(wordIndex << 3));
      store<u64>(ptr, mask);
    }
    left |= dirty ^ mask;
    if (mask == 0) continue;
    walks += walksOfWord;
    // The last gfn too, where it rounds up to another 2M than the first.
    if (isInitSet && word == 0 && (mask & 1) != 0 && mask != 1) walks++;
  }
  if (walks == 0) return 0;
  if (!tdpMmuWrprotTable(slot.asId, slot.baseGfn + page, MASKS, walks)) return -1;
  if (left == 0) treeSet(tree, DIRTY_LEVEL, page, page + 512, 1, 0);
  else treeClearMasked(tree, DIRTY_LEVEL, page, MASKS);
  return 1;
}

/** Dirty runs as pairs (first page, pages) from IO_BASE on; what does not fit is fetched from `fromPage`. */
export function dirtyRuns(asIdAndSlot: u32, fromPage: u64): u32 {
  const slot = memslotAt(asIdAndSlot >> 16, asIdAndSlot & 0xffff);
  let runs: u32 = 0;
  let page = fromPage;
  let ptr = IO_BASE;
  while (page < slot.npages && runs < <u32>(IO_BYTES >> 4)) {
    treeAt(dirtyTree(slot), DIRTY_LEVEL, page);
    let end = min(atEnd, slot.npages);
    if (atFlags & 1) {
      while (end < slot.npages) {
        treeAt(dirtyTree(slot), DIRTY_LEVEL, end);
        if ((atFlags & 1) == 0) break;
        end = min(atEnd, slot.npages);
      }
      store<f64>(ptr, <f64>page);
      store<f64>(ptr, <f64>(end - page), 8);
      ptr += 16;
      runs++;
    }
    page = end;
  }
  return runs;
}

function loggedSlot(asIdAndSlot: u32): i32 {
  const asId = asIdAndSlot >> 16;
  const id = asIdAndSlot & 0xffff;
  if (asId >= ctl.asCount || id >= USER_MEM_SLOTS) return -EINVAL;
  const slot = memslotAt(asId, id);
  return slot.used == 0 || slot.hasDirty == 0 ? -ENOENT : 0;
}
/** Whether the slot can be read: what dirtyRuns() requires. */
export function getDirtyLogCheck(asIdAndSlot: u32): i32 {
  return loggedSlot(asIdAndSlot);
}

/** Reserves for taking any bits of pages [first, end) and write-protecting what they stand for. */
function reserveProtect(slot: Memslot, first: u64, end: u64): bool {
  wantNothing();
  if (first < end) {
    wantCuts(dirtyTree(slot), DIRTY_LEVEL, first, end);
    wantScattered(dirtyTree(slot), DIRTY_LEVEL, first, end, 1, false);
    wantScatteredWalks(slot.asId, slot.baseGfn + first, slot.baseGfn + end);
  }
  return reserveWanted();
}

/**
 * KVM_GET_DIRTY_LOG after dirtyRuns() has been read: without manual protection, takes the bits and write-protects.
 * Mirrors: kvm_get_dirty_log_protect()
 */
export function getDirtyLogProtect(asIdAndSlot: u32): i32 {
  const error = loggedSlot(asIdAndSlot);
  if (error != 0) return error;
  if (ctl.manualDirtyLog != 0) return 0;
  const slot = memslotAt(asIdAndSlot >> 16, asIdAndSlot & 0xffff);
  let offset = nextDirtyWord(slot, 0);
  if (!reserveProtect(slot, offset, slot.npages)) return STATUS_CAPACITY;
  count(C_LOCK_SECTIONS, 1);
  let flush = false;
  while (offset < slot.npages) {
    const table = offset & ~511;
    if (isTable(slot, table, 0, slot.npages)) {
      const taken = takeTable(slot, table, 0, 0);
      if (taken >= 0) {
        flush = flush || taken != 0;
        offset = nextDirtyWord(slot, table + 512);
        continue;
      }
    }
    const mask = dirtyWord(slot, offset);
    treeSet(dirtyTree(slot), DIRTY_LEVEL, offset, min(offset + 64, slot.npages), 1, 0);
    enableLogMasked(slot, offset, mask);
    flush = true;
    offset = nextDirtyWord(slot, offset + 64);
  }
  if (flush) flushRemoteTlbsRange(slot.baseGfn, slot.npages);
  return 0;
}

/**
 * KVM_CLEAR_DIRTY_LOG. `bitmapBytes` of the bitmap stand at BITMAP_BASE and repeat.
 * Mirrors: kvm_clear_dirty_log_protect()
 */
export function clearDirtyLog(asIdAndSlot: u32, firstPage: u64, numPages: u32, bitmapBytes: u32): i32 {
  const asId = asIdAndSlot >> 16;
  const id = asIdAndSlot & 0xffff;
  if (asId >= ctl.asCount || id >= USER_MEM_SLOTS) return -EINVAL;
  if ((firstPage & 63) != 0) return -EINVAL;
  const error = loggedSlot(asIdAndSlot);
  if (error != 0) return error;
  const slot = memslotAt(asId, id);
  if (firstPage > slot.npages || <u64>numPages > slot.npages - firstPage) return -EINVAL;
  if (<u64>numPages < slot.npages - firstPage && (numPages & 63) != 0) return -EINVAL;
  const end = firstPage + <u64>numPages;
  let offset = nextDirtyWord(slot, firstPage);
  if (!reserveProtect(slot, offset, end)) return STATUS_CAPACITY;
  count(C_LOCK_SECTIONS, 1);
  let flush = false;
  while (offset < end) {
    const table = offset & ~511;
    if (isTable(slot, table, firstPage, end)) {
      const taken = takeTable(slot, table, firstPage, bitmapBytes);
      if (taken >= 0) {
        flush = flush || taken != 0;
        offset = nextDirtyWord(slot, table + 512);
        continue;
      }
    }
    const wordIndex = ((offset - firstPage) >> 6) % <u64>(bitmapBytes >> 3);
    const mask = load<u64>(BITMAP_BASE + <usize>(wordIndex << 3)) & dirtyWord(slot, offset);
    if (mask != 0) {
      flush = true;
      clearWord(slot, offset, mask);
      enableLogMasked(slot, offset, mask);
    }
    offset = nextDirtyWord(slot, offset + 64);
  }
  if (flush) flushRemoteTlbsRange(slot.baseGfn, slot.npages);
  return 0;
}

function clearWord(slot: Memslot, offset: u64, mask: u64): void {
  let bit: u64 = 0;
  while (bit < 64) {
    if (((mask >> bit) & 1) == 0) {
      bit++;
      continue;
    }
    let end = bit;
    while (end < 64 && ((mask >> end) & 1) != 0) end++;
    treeSet(dirtyTree(slot), DIRTY_LEVEL, offset + bit, offset + end, 1, 0);
    bit = end;
  }
}
