// The VMM's address space: what backs each page, and the changes to it that fire notifiers.
//
// Nothing here is told what happened: the level and the writability of every backing page follow from the kind of its
// area and from what was done before, and so does each notifier event. The host's page table is a tree (page_table.ts)
// keyed by hva page:
//
//   pmd absent        EMPTY, or under UNIFORM tables that end at level 2     "PUD touched": anything below level 3
//   huge page         LEAF at level 2 (THP, huge zero page, hugetlb 2M) or 3 (hugetlb 1G)
//   pte table         LT, which stays linked when its last pte goes: what faults in there again comes as 4K pages
//
//   flags:  0 present │ 1 writable │ 2 lazyfree │ 3 own │ 4 folio │ 5 ksm │ 6 unmapped
//   own:      a page of this area alone; present but neither own nor ksm is the zero page, which is never writable
//   lazyfree: MADV_FREE said that its contents may go
//   folio:    a pte of a huge page whose pmd was split: still one folio, aged by its head
//   ksm:      merged with equal pages; a write copies it
//   unmapped: LEAF that stands for a huge folio in the page cache of a shared file: no pmd maps it
//
// An event is a start, what changes, and an end; a pause may fall between, so nothing is kept in globals across one.
// Every operation reserves before its first change. Huge areas are never walked by page where they are alike.
// Mirrors: mm/memory.c, mm/huge_memory.c, mm/hugetlb.c, mm/mprotect.c, mm/madvise.c, mm/mremap.c, mm/vma.c,
// mm/khugepaged.c, mm/ksm.c, mm/page_idle.c, mm/vmscan.c, fs/proc/task_mmu.c (v6.12)
// Left out: swap, page-cache residency (only huge folios are known), a file mapped twice, fork, NUMA, soft-dirty bits.

import { reserveWanted, want, wantCuts, wantLeafTables, wantNothing } from './blocks';
import { ctl, HOST_PATH, HOST_TREE } from './control';
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
  TABLE,
  tagOf,
  UNIFORM,
} from './entry';
import {
  anonVmaCompatible,
  canMerge,
  cutVma,
  findVma,
  insertVma,
  isHugetlb,
  joinNewVma,
  lookupVma,
  MAX_MAP_COUNT,
  pageBytesOf,
  prepareAnonVma,
  removeVmas,
  VMA_ANON,
  VMA_HUGEPAGE,
  VMA_HUGETLB_1G,
  VMA_HUGETLB_2M,
  VMA_MERGEABLE,
  VMA_NOHUGEPAGE,
  VMA_SHMEM,
  vmaAt,
} from './host_vma';
import { VMA_BYTES } from './layout';
import { ltClear, ltCount } from './leaf_table';
import {
  hostBackingGone,
  mmuNotifierAge,
  mmuNotifierChangePte,
  mmuNotifierInvalidateRangeEnd,
  mmuNotifierInvalidateRangeStart,
  wantEvent,
  wantEvents,
} from './notifier';
import {
  atEnd,
  atFlags,
  atLevel,
  expand,
  flagsIn,
  fold,
  freeSubtree,
  linkTable,
  treeAt,
  treeEntryNear,
  treeLook,
  treeModify,
  treeSet,
} from './page_table';
import { PAUSE_NOTIFIER_STARTED, pausePoint } from './pause';
import { EACCES, EFAULT, EINVAL, ENOMEM, STATUS_CAPACITY } from './status';

/** Level of the entry that holds the host's page table: keys below 2^45, all of a 57-bit address space. */
export const HOST_LEVEL: i32 = 6;
/** End of user addresses with five-level paging (TASK_SIZE_MAX). */
export const TASK_SIZE: u64 = (1 << 56) - 4096;

export const PAGE_PRESENT: u32 = 1;
export const PAGE_WRITABLE: u32 = 2;
export const PAGE_LAZYFREE: u32 = 4;
export const PAGE_OWN: u32 = 8;
export const PAGE_FOLIO: u32 = 16;
export const PAGE_KSM: u32 = 32;
export const PAGE_UNMAPPED: u32 = 64;

const PROT_READ: u32 = 1;
const PROT_WRITE: u32 = 2;
const PROT_MASK: u32 = 7;

const PAGE: u64 = 1 << 12;
const PMD: u64 = 1 << 21;
const PUD: u64 = 1 << 30;
/** One entry of the top-level table: change_pud_range() starts an event of its own in each. */
const P4D: u64 = 1 << 39;
const PMD_PAGES: u64 = 512;

// Kinds of mapping, as the API numbers them.
export const HOST_ANON4K: u32 = 0;
export const HOST_THP: u32 = 1;
export const HOST_HUGETLB_2M: u32 = 2;
export const HOST_HUGETLB_1G: u32 = 3;
export const HOST_SHMEM: u32 = 4;
export const HOST_ANON: u32 = 5;

// Advice; the numbers are the kernel's (uapi mman-common.h).
export const MADV_DONTNEED: u32 = 4;
export const MADV_FREE: u32 = 8;
export const MADV_REMOVE: u32 = 9;
export const MADV_MERGEABLE: u32 = 12;
export const MADV_UNMERGEABLE: u32 = 13;
export const MADV_HUGEPAGE: u32 = 14;
export const MADV_NOHUGEPAGE: u32 = 15;
export const MADV_COLD: u32 = 20;
export const MADV_PAGEOUT: u32 = 21;
export const MADV_POPULATE_READ: u32 = 22;
export const MADV_POPULATE_WRITE: u32 = 23;
export const MADV_COLLAPSE: u32 = 25;
/** MADV_COLLAPSE whose outcome on shared memory is an input: added to the advice. */
export const COLLAPSE_SUCCEEDS: u32 = 1 << 8;
export const COLLAPSE_FAILS: u32 = 1 << 9;

function down(value: u64, unit: u64): u64 {
  return value & ~(unit - 1);
}
function up(value: u64, unit: u64): u64 {
  return (value + unit - 1) & ~(unit - 1);
}

// --- Events ----------------------------------------------------------------------------------------------------------

/** Starts an event; every start is met by endEvent() of the same range. Returns whether a memslot was met. */
function startEvent(start: u64, end: u64): bool {
  const met = mmuNotifierInvalidateRangeStart(start, end, true);
  pausePoint(PAUSE_NOTIFIER_STARTED);
  return met;
}
function endEvent(start: u64, end: u64): void {
  mmuNotifierInvalidateRangeEnd(start, end);
}
/** Ends an event whose pages are freed or replaced. */
function endEventGone(start: u64, end: u64): void {
  hostBackingGone(start, end);
  mmuNotifierInvalidateRangeEnd(start, end);
}

// --- The page table --------------------------------------------------------------------------------------------------

/** Reads the page table at `hva` into at* of page_table.ts. */
function readAt(hva: u64): void {
  treeAt(HOST_TREE, HOST_LEVEL, hva >> 12);
}
function isMapped(flags: u32): bool {
  return (flags & (PAGE_PRESENT | PAGE_UNMAPPED)) == PAGE_PRESENT;
}
/** Whether a pmd maps all of the 2M at `base`. */
function isHugeAt(base: u64): bool {
  readAt(base);
  return atLevel == 2 && isMapped(atFlags);
}

/** The first address of [start, end) whose PUD exists; `end` if none. */
function firstTouched(start: u64, end: u64): u64 {
  let at = start;
  while (at < end) {
    readAt(at);
    if (atLevel < 3 || atFlags != 0) return at;
    at = atEnd << 12;
  }
  return end;
}

const PMD_NONE: u32 = 0;
const PMD_LEAF: u32 = 1;
const PMD_TABLE: u32 = 2;

/** Makes the level-2 entry of `key` absent, a huge page with `flags`, or a pte table full of `flags`. */
function setPmd(entryPtr: usize, level: i32, key: u64, state: u32, flags: u32): void {
  if (level == 2) {
    freeSubtree(entryPtr, 2);
    if (state == PMD_LEAF) setLeaf(entryPtr, 2, flags);
    else if (state == PMD_TABLE) setUniform(entryPtr, 2, 1, flags);
    return;
  }
  if (tagOf(entryPtr) == UNIFORM) expand(entryPtr, level);
  else if (tagOf(entryPtr) == EMPTY) linkTable(entryPtr);
  setPmd(childPtr(entryPtr, indexAt(key, level - 1)), level - 1, key, state, flags);
  fold(entryPtr, level, key);
}
function setPmdAt(base: u64, state: u32, flags: u32): void {
  setPmd(HOST_TREE, HOST_LEVEL, base >> 12, state, flags);
}
function setPteAt(hva: u64, flags: u32): void {
  const page = hva >> 12;
  treeSet(HOST_TREE, HOST_LEVEL, page, page + 1, 1, flags);
}

/**
 * Unmaps keys [start, end); pte tables stay. `keepHuge`: huge folios of a file stay in its page cache, as those do in any
 * case that are covered in part. Huge mappings that are covered in part were split before.
 * Mirrors: unmap_page_range(), mm/memory.c
 */
function unmap(entryPtr: usize, level: i32, start: u64, end: u64, keepHuge: bool): void {
  const tag = tagOf(entryPtr);
  if (tag == EMPTY) return;
  if (tag == LT) {
    ltClear(entryPtr, <i32>(start & 511), <i32>((end - 1) & 511) + 1);
    return;
  }
  if (tag != TABLE) {
    if ((flagsOf(entryPtr) & PAGE_PRESENT) == 0) return;
    const whole = (start & (pagesOf(level) - 1)) == 0 && end - start == pagesOf(level);
    if (tag == LEAF || whole) {
      if (!whole) {
        if ((flagsOf(entryPtr) & PAGE_UNMAPPED) != 0) return;
        // Faulted in by a vCPU while the event was held open, after its neighbours were split.
        setUniform(entryPtr, 2, 1, flagsOf(entryPtr));
        ltClear(entryPtr, <i32>(start & 511), <i32>((end - 1) & 511) + 1);
        return;
      }
      const leafLevel = tag == LEAF ? level : leafLevelOf(entryPtr);
      const flags = keepHuge && leafLevel == 2 ? PAGE_PRESENT | PAGE_UNMAPPED : 0;
      if (tag != LEAF) setUniform(entryPtr, level, leafLevel, flags);
      else if (flags != 0) setLeaf(entryPtr, level, flags);
      else setEmpty(entryPtr);
      return;
    }
    expand(entryPtr, level);
  }
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    unmap(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, keepHuge);
    at = next;
  }
  fold(entryPtr, level, start);
}
function unmapRange(start: u64, end: u64, keepHuge: bool): void {
  if (start < end) unmap(HOST_TREE, HOST_LEVEL, start >> 12, end >> 12, keepHuge);
}

/**
 * Frees the tables that lie wholly within keys [start, end), where no area is left.
 * Mirrors: free_pgd_range(), mm/memory.c
 */
function freeTables(entryPtr: usize, level: i32, start: u64, end: u64): void {
  const tag = tagOf(entryPtr);
  if (tag == EMPTY) return;
  if ((start & (pagesOf(level) - 1)) == 0 && end - start == pagesOf(level)) {
    freeSubtree(entryPtr, level);
    return;
  }
  if (level == 2 || tag == LEAF) return;
  if (tag == UNIFORM) expand(entryPtr, level);
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    freeTables(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next);
    at = next;
  }
  fold(entryPtr, level, start);
}

/** Links an empty pte table wherever keys [start, end) have none and no huge page. Mirrors: pte_alloc() */
function linkPteTables(entryPtr: usize, level: i32, start: u64, end: u64): void {
  const tag = tagOf(entryPtr);
  if (tag == LT || tag == LEAF) return;
  if (tag == UNIFORM && (leafLevelOf(entryPtr) == 1 || (flagsOf(entryPtr) & PAGE_PRESENT) != 0)) return;
  if (tag != TABLE) {
    if (level == 2 || ((start & (pagesOf(level) - 1)) == 0 && end - start == pagesOf(level))) {
      setUniform(entryPtr, level, 1, 0);
      return;
    }
    if (tag == UNIFORM) expand(entryPtr, level);
    else linkTable(entryPtr);
  }
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    linkPteTables(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next);
    at = next;
  }
  fold(entryPtr, level, start);
}

/** End of the run of absent keys from `key`, below `limit`. `level`: 0 any, 1 in pte tables only, 2 pmds only. */
function absentEnd(key: u64, limit: u64, level: i32): u64 {
  let at = key;
  while (at < limit) {
    treeAt(HOST_TREE, HOST_LEVEL, at);
    if (atFlags != 0 || (level != 0 && (level == 1) != (atLevel == 1))) break;
    at = atEnd;
  }
  return min(at, limit);
}
/** End of the run of keys from `key`, below `limit`, mapped at one level with the same flags. */
function mappedEnd(key: u64, limit: u64): u64 {
  if (key + 1 == limit) return limit;
  treeAt(HOST_TREE, HOST_LEVEL, key);
  const flags = atFlags;
  const level = atLevel;
  while (atEnd < limit) {
    const end = atEnd;
    treeAt(HOST_TREE, HOST_LEVEL, end);
    if (atFlags != flags || atLevel != level) return end;
  }
  return limit;
}

// --- Reservations ----------------------------------------------------------------------------------------------------

/**
 * Reserves what any operation on [start, end) can need: in the page table a cut at either end and at the bounds of each
 * area between, one more place that moves along, and growth of every table that is stored already; in the slots, `events`.
 */
function reserveRange(start: u64, end: u64, events: u32): bool {
  wantNothing();
  wantHostRange(start, end);
  wantRangeEvents(start, end, events);
  return reserveWanted();
}
function wantHostRange(start: u64, end: u64): void {
  want(8, 6);
  wantCuts(HOST_TREE, HOST_LEVEL, start >> 12, (end + PAGE - 1) >> 12);
  for (let index = findVma(start); index < ctl.vmaCount && vmaAt(index).start < end; index++) {
    const vma = vmaAt(index);
    wantCuts(HOST_TREE, HOST_LEVEL, vma.start >> 12, vma.end >> 12);
  }
  wantLeafTables(HOST_TREE, HOST_LEVEL, start >> 12, (end + PAGE - 1) >> 12);
}

/** One event for all of the range, beside the splits of huge pages at its ends. */
const EVENT_WHOLE: u32 = 0;
/** As EVENT_WHOLE in each area, or in each entry of the top-level table: one event if the range lies in one of each. */
const EVENT_AREAS: u32 = 1;
/** Any number of events, for any pages of the range and of the huge pages at its ends. */
const EVENT_PAGES: u32 = 2;

function wantRangeEvents(start: u64, end: u64, events: u32): void {
  if (start >= end) return;
  let whole = events == EVENT_WHOLE;
  if (events == EVENT_AREAS) {
    const index = findVma(start);
    whole = (index == ctl.vmaCount || vmaAt(index).end >= end) && down(start, P4D) == down(end - 1, P4D);
  }
  if (!whole) {
    wantEvents(down(start, PUD), up(end, PUD));
    return;
  }
  wantEvent(start, end);
  const first = down(start, PMD);
  if (first != start) wantEvent(first, first + PMD);
  const last = down(end, PMD);
  if (last != end) wantEvent(last, last + PMD);
}

// --- Splits and area changes -----------------------------------------------------------------------------------------

/**
 * Splits the huge page at `base`, if there is one, into ptes; a file's is unmapped instead and stays in its cache.
 * The event comes in any case.
 * Mirrors: __split_huge_pmd(), mm/huge_memory.c
 */
function splitHugePmd(base: u64, isShared: bool): void {
  startEvent(base, base + PMD);
  let isZero = false;
  if (isHugeAt(base)) {
    const flags = atFlags;
    isZero = (flags & PAGE_OWN) == 0;
    if (isShared) setPmdAt(base, PMD_LEAF, PAGE_PRESENT | PAGE_UNMAPPED);
    else setPmdAt(base, PMD_TABLE, isZero ? PAGE_PRESENT : flags | PAGE_FOLIO);
  }
  if (isZero) endEventGone(base, base + PMD);
  else endEvent(base, base + PMD);
}

/**
 * What cutting the area at `index` at `hva` does to a huge page there: the event comes whatever maps the 2M.
 * Mirrors: vma_adjust_trans_huge(), split_huge_pmd_if_needed(), mm/huge_memory.c
 */
function splitForCut(hva: u64, index: u32): void {
  const vma = vmaAt(index);
  const base = down(hva, PMD);
  if (base == hva || base < vma.start || base + PMD > vma.end) return;
  if (firstTouched(hva, hva + 1) != hva) return;
  splitHugePmd(base, vma.kind == VMA_SHMEM);
}

/** Cuts the area at `index` in two at `hva`. Mirrors: split_vma(), mm/vma.c */
function splitVma(index: u32, hva: u64): i32 {
  const vma = vmaAt(index);
  if ((hva & (pageBytesOf(vma) - 1)) != 0) return -EINVAL;
  if (ctl.vmaCount >= MAX_MAP_COUNT) return -ENOMEM;
  splitForCut(hva, index);
  cutVma(index, hva);
  return 0;
}

/**
 * Gives [start, end), which lies within one area, new attributes: joined with neighbours that have them, else cut out.
 * Mirrors: vma_modify(), vma_merge_existing_range(), mm/vma.c
 */
function modifyVma(start: u64, end: u64, prot: u8, flags: u16): i32 {
  let index = findVma(start);
  let vma = vmaAt(index);
  const reachesLower = start == vma.start;
  const reachesUpper = end == vma.end;
  const joinsLower = reachesLower && index > 0 && canMerge(vmaAt(index - 1), vma, true, prot, flags);
  let joinsUpper = reachesUpper && index + 1 < ctl.vmaCount && canMerge(vmaAt(index + 1), vma, false, prot, flags);
  if (joinsLower && joinsUpper && !anonVmaCompatible(vmaAt(index - 1).anonVma, vmaAt(index + 1).anonVma)) {
    joinsUpper = false;
  }
  if (joinsLower) {
    const lower = vmaAt(index - 1);
    if (!reachesUpper) {
      splitForCut(end, index);
      lower.end = end;
      vma.start = end;
    } else {
      lower.end = vma.end;
    }
    if (lower.anonVma == 0) lower.anonVma = vma.anonVma;
    if (!reachesUpper) return 0;
    if (joinsUpper) {
      const upper = vmaAt(index + 1);
      lower.end = upper.end;
      if (lower.anonVma == 0) lower.anonVma = upper.anonVma;
    }
    removeVmas(index, joinsUpper ? 2 : 1);
    return 0;
  }
  if (joinsUpper) {
    const upper = vmaAt(index + 1);
    if (!reachesLower) splitForCut(start, index);
    upper.start = start;
    if (upper.anonVma == 0) upper.anonVma = vma.anonVma;
    if (reachesLower) removeVmas(index, 1);
    else vma.end = start;
    return 0;
  }
  if (!reachesLower) {
    const status = splitVma(index, start);
    if (status != 0) return status;
    index++;
  }
  if (!reachesUpper) {
    const status = splitVma(index, end);
    if (status != 0) return status;
  }
  vma = vmaAt(index);
  vma.prot = prot;
  vma.flags = flags;
  return 0;
}

// --- Faults ----------------------------------------------------------------------------------------------------------

/** What the last hostFault() found: the level of the host's mapping and whether it is writable. */
export let hostLevel: i32 = 0;
export let hostWritable: bool = false;
/** Pages from the faulted one on that are now mapped alike, at most as many as were asked for. */
export let hostRunPages: u64 = 0;

function setResult(level: i32, flags: u32, runPages: u64): void {
  hostLevel = level;
  hostWritable = (flags & PAGE_WRITABLE) != 0;
  hostRunPages = runPages;
}

/** Replaces a page that is not the area's own by a copy. Mirrors: wp_page_copy(), mm/memory.c */
function copyPage(index: u32, hva: u64): void {
  startEvent(hva, hva + PAGE);
  prepareAnonVma(index);
  setPteAt(hva, PAGE_PRESENT | PAGE_OWN | PAGE_WRITABLE);
  endEventGone(hva, hva + PAGE);
}

/** A fault on a page that is mapped: permissions of an own page are raised in place, any other page is copied. */
function faultMapped(index: u32, page: u64, last: u64, write: bool): void {
  const flags = atFlags;
  const level = atLevel;
  if (!write || (flags & (PAGE_WRITABLE | PAGE_LAZYFREE)) == PAGE_WRITABLE) {
    setResult(level, flags, mappedEnd(page, last) - page);
    return;
  }
  if (flags & PAGE_OWN) {
    const end = mappedEnd(page, last);
    treeModify(HOST_TREE, HOST_LEVEL, page, end, PAGE_PRESENT | PAGE_OWN, PAGE_LAZYFREE, PAGE_WRITABLE);
    setResult(level, PAGE_WRITABLE, end - page);
    return;
  }
  const hva = page << 12;
  if (level == 2) splitHugePmd(down(hva, PMD), false);
  copyPage(index, hva);
  setResult(1, PAGE_WRITABLE, 1);
}

/** A first touch: maps what single faults one after the other would map of [page, last). */
function faultAbsent(index: u32, page: u64, last: u64, write: bool): void {
  const vma = vmaAt(index);
  const fileHuge = atFlags != 0;
  const inPteTable = atLevel == 1;
  let flags: u32 = PAGE_PRESENT;
  let level: i32 = 1;
  let start = page;
  let end = last;
  if (isHugetlb(vma)) {
    const hugePages = pageBytesOf(vma) >> 12;
    level = vma.kind == VMA_HUGETLB_2M ? 2 : 3;
    flags |= PAGE_OWN | (write ? PAGE_WRITABLE : 0);
    start = down(page, hugePages);
    end = absentEnd(start, up(last, hugePages), 0);
  } else if (vma.kind == VMA_SHMEM) {
    flags |= PAGE_OWN | (vma.prot & PROT_WRITE ? PAGE_WRITABLE : 0);
    const base = down(page << 12, PMD);
    if (fileHuge) {
      // The cache holds a huge folio: mapped whole where the area has room for it.
      if (base >= vma.start && base + PMD <= vma.end) {
        level = 2;
        start = base >> 12;
        end = start + PMD_PAGES;
      } else {
        setPmdAt(base, PMD_TABLE, 0);
        end = min(last, (base + PMD) >> 12);
      }
    } else {
      end = absentEnd(page, last, 0);
    }
  } else {
    if (write) flags |= PAGE_OWN | PAGE_WRITABLE;
    const firstHuge = up(vma.start, PMD) >> 12;
    const endHuge = down(vma.end, PMD) >> 12;
    if ((vma.flags & VMA_HUGEPAGE) == 0) {
      end = absentEnd(page, last, 0);
    } else if (inPteTable) {
      end = absentEnd(page, last, 1);
    } else if (page >= firstHuge && page < endHuge) {
      level = 2;
      start = down(page, PMD_PAGES);
      end = absentEnd(start, min(up(last, PMD_PAGES), endHuge), 2);
    } else {
      end = min(last, down(page, PMD_PAGES) + PMD_PAGES);
    }
    // The huge zero page needs an anon_vma, too; a zero page does not.
    if (write || level == 2) prepareAnonVma(index);
  }
  treeSet(HOST_TREE, HOST_LEVEL, start, end, level, flags);
  setResult(level, flags, min(end, last) - page);
}

/** Requires: `page` lies in the area at `index`, whose protection allows the access; room is reserved. */
function faultPage(index: u32, page: u64, limitPages: u64, write: bool): void {
  const last = min(vmaAt(index).end >> 12, page + limitPages);
  treeLook(HOST_TREE, HOST_LEVEL, page);
  if (isMapped(atFlags)) faultMapped(index, page, last, write);
  else faultAbsent(index, page, last, write);
}

/**
 * Faults in one page for KVM; a uniform area follows at once, up to `limitPages`. Results: hostLevel, hostWritable,
 * hostRunPages.
 * Requires: reserveFault().
 * Returns: -EFAULT without an area that allows the access.
 * Mirrors: hva_to_pfn(), virt/kvm/kvm_main.c; check_vma_flags(), mm/gup.c; handle_mm_fault(), mm/memory.c
 */
export function hostFault(hva: u64, write: bool, limitPages: u64): i32 {
  setResult(1, 0, 1);
  const index = lookupVma(hva);
  if (index == ctl.vmaCount) return -EFAULT;
  if ((vmaAt(index).prot & (write ? PROT_WRITE : PROT_READ)) == 0) return -EFAULT;
  faultPage(index, hva >> 12, limitPages, write);
  return 0;
}

/**
 * As hostFault(), for faults that fire no event and find or make pages of 4K. Returns how many of `limitPages` pages are now
 * mapped alike; 0 where the fault is of another kind, or fails: nothing was changed then. Result: hostWritable.
 */
export function hostFaultPlain(hva: u64, write: bool, limitPages: u64): u64 {
  const index = lookupVma(hva);
  if (index == ctl.vmaCount) return 0;
  const vma = vmaAt(index);
  if ((vma.prot & (write ? PROT_WRITE : PROT_READ)) == 0) return 0;
  const page = hva >> 12;
  const entry = treeEntryNear(HOST_PATH, HOST_TREE, HOST_LEVEL, page);
  const flags = flagsIn(entry, page);
  if (flags == 0) {
    treeLook(HOST_TREE, HOST_LEVEL, page);
    const isByPte =
      vma.kind == VMA_SHMEM || (vma.kind == VMA_ANON && (atLevel == 1 || (vma.flags & VMA_HUGEPAGE) == 0));
    if (!isByPte) return 0;
    faultAbsent(index, page, min(vma.end >> 12, page + limitPages), write);
    return hostRunPages;
  }
  if (!isMapped(flags) || (tagOf(entry) != LT && leafLevelOf(entry) != 1)) return 0;
  if (write && (flags & (PAGE_WRITABLE | PAGE_LAZYFREE)) != PAGE_WRITABLE) return 0;
  hostWritable = (flags & PAGE_WRITABLE) != 0;
  return limitPages == 1 ? 1 : mappedEnd(page, min(vma.end >> 12, page + limitPages)) - page;
}

/** Level of the present mapping at `hva`, 1 if there is none. Mirrors: host_pfn_mapping_level(), arch/x86/kvm/mmu/mmu.c */
export function hostLevelAt(hva: u64): i32 {
  readAt(hva);
  return isMapped(atFlags) ? atLevel : 1;
}

/**
 * The process itself touches a byte every `stepBytes` of [start, start + lengthBytes).
 * Returns: -EFAULT where a SIGSEGV would come; what was touched before stays.
 */
export function hostAccess(start: u64, lengthBytes: u64, write: bool, stepBytes: u64): i32 {
  const end = start + lengthBytes;
  if (stepBytes == 0 || end < start || end > TASK_SIZE) return -EINVAL;
  if (lengthBytes == 0) return 0;
  if (stepBytes <= PAGE) {
    if (!reserveRange(start, end, EVENT_PAGES)) return STATUS_CAPACITY;
  } else {
    // Scattered: a table of ptes for each touch, and the uppers to reach it.
    wantNothing();
    const leafs = min(lengthBytes / stepBytes, lengthBytes >> 21) + 8;
    want((lengthBytes >> 30) + (lengthBytes >> 39) + (lengthBytes >> 48) + 16, leafs);
    wantLeafTables(HOST_TREE, HOST_LEVEL, start >> 12, (end + PAGE - 1) >> 12);
    wantRangeEvents(start, end, EVENT_PAGES);
    if (!reserveWanted()) return STATUS_CAPACITY;
  }
  const lastPage = (start + ((lengthBytes - 1) / stepBytes) * stepBytes) >> 12;
  let at = start;
  while (at < end && at >> 12 <= lastPage) {
    const index = lookupVma(at);
    if (index == ctl.vmaCount) return -EFAULT;
    const prot: u32 = vmaAt(index).prot;
    if (write ? (prot & PROT_WRITE) == 0 : prot == 0) return -EFAULT;
    const page = at >> 12;
    if (stepBytes <= PAGE) {
      faultPage(index, page, lastPage + 1 - page, write);
      at = (page + hostRunPages) << 12;
    } else {
      faultPage(index, page, 1, write);
      at += stepBytes;
    }
  }
  return 0;
}

// --- mmap, munmap, mremap, mprotect ----------------------------------------------------------------------------------

/** Splits huge pages that [start, end) covers in part, each within an event of its own. */
function splitPartlyCovered(start: u64, end: u64, isShared: bool): void {
  const first = down(start, PMD);
  if (first != start && isHugeAt(first)) splitHugePmd(first, isShared);
  const last = down(end, PMD);
  if (last != end && (last != first || first == start) && isHugeAt(last)) splitHugePmd(last, isShared);
}

/**
 * Removes the areas of [start, end): cuts at both ends, then one event for all of it.
 * Requires: room is reserved.
 * Mirrors: do_vmi_align_munmap(), unmap_vmas(), free_pgtables()
 */
function unmapAreas(start: u64, end: u64): i32 {
  let first = findVma(start);
  if (first == ctl.vmaCount || vmaAt(first).start >= end) return 0;
  if (vmaAt(first).start < start) {
    if (end < vmaAt(first).end && ctl.vmaCount >= MAX_MAP_COUNT) return -ENOMEM;
    const status = splitVma(first, start);
    if (status != 0) return status;
    first++;
  }
  let next = findVma(end);
  if (next < ctl.vmaCount && vmaAt(next).start < end) {
    const status = splitVma(next, end);
    if (status != 0) return status;
    next++;
  }
  const floor = first > 0 ? vmaAt(first - 1).end : 0;
  const ceiling = next < ctl.vmaCount ? vmaAt(next).start : pagesOf(HOST_LEVEL) << 12;
  removeVmas(first, next - first);
  startEvent(start, end);
  unmapRange(start, end, false);
  const from = up(floor, PMD) >> 12;
  const to = down(ceiling, PMD) >> 12;
  if (from < to) freeTables(HOST_TREE, HOST_LEVEL, from, to);
  endEventGone(start, end);
  return 0;
}

/**
 * Maps a new area at [start, end); what was there is unmapped first (MAP_FIXED).
 * Returns: -EINVAL for an unknown kind, an unaligned or empty range; -ENOMEM beyond user addresses or with too many areas.
 * Mirrors: mmap_region(), mm/mmap.c
 */
export function hostMmap(kind: u32, start: u64, end: u64, prot: u32): i32 {
  if (kind > HOST_ANON || (prot & ~PROT_MASK) != 0) return -EINVAL;
  const unit = kind == HOST_HUGETLB_2M ? PMD : kind == HOST_HUGETLB_1G ? PUD : PAGE;
  if ((start & (unit - 1)) != 0 || end == start) return -EINVAL;
  if (end < start || end > TASK_SIZE) return -ENOMEM;
  end = up(end, unit);
  if (end > TASK_SIZE) return -ENOMEM;
  if (ctl.vmaCount >= MAX_MAP_COUNT) return -ENOMEM;
  if (!reserveRange(start, end, EVENT_WHOLE)) return STATUS_CAPACITY;
  const status = unmapAreas(start, end);
  if (status != 0) return status;
  const index = findVma(start);
  const vma = insertVma(index);
  vma.start = start;
  vma.end = end;
  vma.offset = 0;
  vma.anonVma = 0;
  vma.file = 0;
  vma.prot = <u8>prot;
  vma.flags = kind == HOST_ANON4K ? VMA_NOHUGEPAGE : kind == HOST_THP ? VMA_HUGEPAGE : 0;
  vma.pad = 0;
  if (kind == HOST_HUGETLB_2M) {
    vma.kind = VMA_HUGETLB_2M;
  } else if (kind == HOST_HUGETLB_1G) {
    vma.kind = VMA_HUGETLB_1G;
  } else if (kind == HOST_SHMEM) {
    vma.kind = VMA_SHMEM;
    vma.file = ++ctl.anonVmaNext;
    vma.offset = 0 - start;
  } else {
    vma.kind = VMA_ANON;
  }
  joinNewVma(index);
  return 0;
}

/**
 * Returns: -EINVAL for an unaligned start, an empty range or one beyond user addresses, or a cut inside a hugetlb page.
 * Mirrors: do_vmi_munmap()
 */
export function hostMunmap(start: u64, end: u64): i32 {
  if ((start & (PAGE - 1)) != 0 || end <= start || end > TASK_SIZE) return -EINVAL;
  end = up(end, PAGE);
  if (!reserveRange(start, end, EVENT_WHOLE)) return STATUS_CAPACITY;
  return unmapAreas(start, end);
}

/** Changes the protection of mapped pages of [start, end), of one area. Mirrors: change_protection(), mm/mprotect.c */
function changeProtection(start: u64, end: u64, isHuge: bool, isWritable: bool): void {
  let at = start;
  while (at < end) {
    const chunkEnd = isHuge ? end : min(down(at, P4D) + P4D, end);
    const from = isHuge ? at : firstTouched(at, chunkEnd);
    if (from < chunkEnd) {
      startEvent(from, chunkEnd);
      const firstPage = from >> 12;
      const endPage = chunkEnd >> 12;
      if (!isWritable) treeModify(HOST_TREE, HOST_LEVEL, firstPage, endPage, PAGE_PRESENT, PAGE_WRITABLE, 0);
      else if (!isHuge)
        treeModify(HOST_TREE, HOST_LEVEL, firstPage, endPage, PAGE_PRESENT | PAGE_OWN, 0, PAGE_WRITABLE);
      endEvent(from, chunkEnd);
    }
    at = chunkEnd;
  }
}

/**
 * Returns: -EINVAL for an unaligned start, unknown protection bits, or a cut inside a hugetlb page; -ENOMEM at a hole,
 * after what lies before it was done.
 * Mirrors: do_mprotect_pkey(), mprotect_fixup(), mm/mprotect.c
 */
export function hostMprotect(start: u64, end: u64, prot: u32): i32 {
  if ((start & (PAGE - 1)) != 0 || (prot & ~PROT_MASK) != 0) return -EINVAL;
  if (end == start) return 0;
  if (end > TASK_SIZE || end < start) return -ENOMEM;
  end = up(end, PAGE);
  if (!reserveRange(start, end, EVENT_AREAS)) return STATUS_CAPACITY;
  let at = start;
  while (at < end) {
    const index = lookupVma(at);
    if (index == ctl.vmaCount) return -ENOMEM;
    const vma = vmaAt(index);
    const to = min(vma.end, end);
    if (vma.prot != <u8>prot) {
      const isHuge = isHugetlb(vma);
      const status = modifyVma(at, to, <u8>prot, vma.flags);
      if (status != 0) return status;
      changeProtection(at, to, isHuge, (prot & PROT_WRITE) != 0);
    }
    at = to;
  }
  return 0;
}

/** Tables and leaf tables stored below an entry within keys [start, end): what a copy elsewhere can need. */
function storedTables(entryPtr: usize, level: i32, start: u64, end: u64, leafs: bool): u32 {
  const tag = tagOf(entryPtr);
  if (tag != TABLE) return leafs && tag != EMPTY ? 2 : 0;
  const childLevel = level - 1;
  const pages = pagesOf(childLevel);
  let tables: u32 = leafs ? 0 : 2;
  let at = start;
  while (at < end) {
    const next = min((at & ~(pages - 1)) + pages, end);
    tables += storedTables(childPtr(entryPtr, indexAt(at, childLevel)), childLevel, at, next, leafs);
    at = next;
  }
  return tables;
}

/** Moves the ptes of [start, end) by `delta` bytes. Mirrors: move_page_tables(), mm/mremap.c */
function movePageTables(start: u64, end: u64, delta: u64, isShared: bool): void {
  // A huge page moves whole where it fits at both places; any other is split first, in an event of its own.
  const congruent = (delta & (PMD - 1)) == 0;
  let at = start;
  while (at < end) {
    readAt(at);
    const to = min(atEnd << 12, end);
    if (atLevel != 2 || !isMapped(atFlags)) {
      at = to;
      continue;
    }
    const base = down(at, PMD);
    if (congruent && base >= start) {
      at = base + PMD <= end ? (down(to, PMD) > at ? down(to, PMD) : base + PMD) : base;
      if (at != base) continue;
    }
    splitHugePmd(base, isShared);
    at = min(base + PMD, end);
  }
  at = start;
  while (at < end) {
    readAt(at);
    const flags = congruent ? atFlags : atFlags & ~PAGE_FOLIO;
    const level = atLevel;
    const to = min(atEnd << 12, end);
    const newPage = (at + delta) >> 12;
    const newEnd = (to + delta) >> 12;
    if (level == 1) linkPteTables(HOST_TREE, HOST_LEVEL, newPage, newEnd);
    if (flags != 0 && (level == 1 || congruent)) treeSet(HOST_TREE, HOST_LEVEL, newPage, newEnd, level, flags);
    at = to;
  }
  unmapRange(start, end, false);
}

/** Whether an area begins at `hva`, and nothing else lies in that 2M before it. Mirrors: can_align_down() */
function beginsIn2m(hva: u64): bool {
  return vmaAt(findVma(down(hva, PMD))).start == hva;
}

/**
 * Moves [oldStart, oldStart + lengthBytes) to newStart (MREMAP_MAYMOVE | MREMAP_FIXED, same length).
 * Returns: -EINVAL for unaligned, empty or overlapping ranges; -EFAULT unless one area holds the old range: if it only
 * begins in one, what was at the new place is gone.
 * Mirrors: mremap_to(), move_vma(), copy_vma(), try_realign_addr(), mm/mremap.c
 */
export function hostMremap(oldStart: u64, lengthBytes: u64, newStart: u64): i32 {
  if (((oldStart | newStart) & (PAGE - 1)) != 0 || lengthBytes == 0 || lengthBytes > TASK_SIZE) return -EINVAL;
  let length = up(lengthBytes, PAGE);
  let index = lookupVma(oldStart);
  if (index == ctl.vmaCount) return -EFAULT;
  if (isHugetlb(vmaAt(index))) {
    const unit = pageBytesOf(vmaAt(index));
    length = up(lengthBytes, unit);
    if (((oldStart | newStart) & (unit - 1)) != 0) return -EINVAL;
  }
  if (newStart > TASK_SIZE - length) return -EINVAL;
  if (oldStart + length > newStart && newStart + length > oldStart) return -EINVAL;
  if (ctl.vmaCount >= MAX_MAP_COUNT - 3) return -ENOMEM;
  const oldEnd = oldStart + length;
  const newEnd = newStart + length;
  if (oldEnd > vmaAt(index).end) {
    // Seen only once the new place is free.
    const status = hostMunmap(newStart, newEnd);
    return status != 0 ? status : -EFAULT;
  }
  const firstPage = oldStart >> 12;
  const endPage = oldEnd >> 12;
  wantNothing();
  const tables = storedTables(HOST_TREE, HOST_LEVEL, firstPage, endPage, false);
  want(<u64>tables + 32, <u64>storedTables(HOST_TREE, HOST_LEVEL, firstPage, endPage, true) + 16);
  wantHostRange(newStart, newEnd);
  wantRangeEvents(newStart, newEnd, EVENT_WHOLE);
  wantRangeEvents(down(oldStart, PMD), oldEnd, EVENT_WHOLE);
  if (((newStart - oldStart) & (PMD - 1)) != 0) {
    // Huge pages and pte tables no longer fall on table bounds at the new place; each huge page is split.
    want(length >> 30, length >> 30);
    wantRangeEvents(oldStart, oldEnd, EVENT_PAGES);
  }
  if (!reserveWanted()) return STATUS_CAPACITY;
  const status = unmapAreas(newStart, newEnd);
  if (status != 0) return status;
  index = lookupVma(oldStart);
  const place = findVma(newStart);
  const moved = insertVma(place);
  if (place <= index) index++;
  const vma = vmaAt(index);
  const delta = newStart - oldStart;
  memory.copy(changetype<usize>(moved), changetype<usize>(vma), VMA_BYTES);
  moved.start = newStart;
  moved.end = newEnd;
  // An area without an anon_vma takes the offset of its new place.
  if (vma.kind != VMA_ANON || vma.anonVma != 0) moved.offset = vma.offset - delta;
  const isShared = vma.kind == VMA_SHMEM;
  joinNewVma(place);
  // A first table that holds nothing else on either side moves whole, and the event begins where it does.
  const isWhole = (delta & (PMD - 1)) == 0 && length >= PMD - (oldStart & (PMD - 1));
  const from = isWhole && beginsIn2m(oldStart) && beginsIn2m(newStart) ? down(oldStart, PMD) : oldStart;
  startEvent(from, oldEnd);
  movePageTables(oldStart, oldEnd, delta, isShared);
  endEventGone(from, oldEnd);
  return unmapAreas(oldStart, oldEnd);
}

// --- madvise ---------------------------------------------------------------------------------------------------------

/** Mirrors: madvise_dontneed_single_vma(), zap_page_range_single() */
function dontNeed(index: u32, start: u64, end: u64): i32 {
  const vma = vmaAt(index);
  const isShared = vma.kind == VMA_SHMEM;
  if (isHugetlb(vma)) {
    const unit = pageBytesOf(vma);
    if ((start & (unit - 1)) != 0) return -EINVAL;
    end = down(end, unit);
    if (start >= end) return 0;
  }
  startEvent(start, end);
  if (!isHugetlb(vma)) splitPartlyCovered(start, end, isShared);
  unmapRange(start, end, isShared);
  // A file keeps its pages: what faults in again is the same.
  if (isShared) endEvent(start, end);
  else endEventGone(start, end);
  return 0;
}

/** Mirrors: madvise_remove(); shmem_fallocate(), mm/shmem.c */
function remove(index: u32, start: u64, end: u64): i32 {
  const vma = vmaAt(index);
  if (vma.kind == VMA_ANON) return -EINVAL;
  if (vma.kind != VMA_SHMEM) return -EACCES;
  startEvent(start, end);
  splitPartlyCovered(start, end, true);
  // A hole in a huge folio of the cache splits it.
  const first = down(start, PMD);
  const last = down(end, PMD);
  forgetHugeFolio(first);
  if (last != end) forgetHugeFolio(last);
  unmapRange(start, end, false);
  endEventGone(start, end);
  return 0;
}
function forgetHugeFolio(base: u64): void {
  readAt(base);
  if (atLevel == 2 && (atFlags & PAGE_UNMAPPED) != 0) setPmdAt(base, PMD_NONE, 0);
}

/**
 * Splits an anonymous huge page into single pages, not only its pmd: the split of the pmd and the unmapping of its
 * pages are an event each.
 * Mirrors: split_folio(), unmap_folio(), mm/huge_memory.c
 */
function splitFolio(base: u64): void {
  splitHugePmd(base, false);
  startEvent(base, base + PMD);
  const page = base >> 12;
  treeModify(HOST_TREE, HOST_LEVEL, page, page + PMD_PAGES, PAGE_PRESENT | PAGE_FOLIO, PAGE_FOLIO, 0);
  endEventGone(base, base + PMD);
}
/** Splits own huge pages that [start, end) covers in part. */
function splitPartlyCoveredFolios(start: u64, end: u64): void {
  const first = down(start, PMD);
  if (first != start && isHugeAt(first) && (atFlags & PAGE_OWN) != 0) splitFolio(first);
  const last = down(end, PMD);
  if (last == end || (last == first && first != start)) return;
  if (isHugeAt(last) && (atFlags & PAGE_OWN) != 0) splitFolio(last);
}

/** Mirrors: madvise_free_single_vma() */
function free(index: u32, start: u64, end: u64): i32 {
  if (vmaAt(index).kind != VMA_ANON) return -EINVAL;
  startEvent(start, end);
  splitPartlyCoveredFolios(start, end);
  treeModify(HOST_TREE, HOST_LEVEL, start >> 12, end >> 12, PAGE_PRESENT | PAGE_OWN, 0, PAGE_LAZYFREE);
  endEvent(start, end);
  return 0;
}

/** Mirrors: madvise_cold() */
function cold(index: u32, start: u64, end: u64): i32 {
  const vma = vmaAt(index);
  if (isHugetlb(vma)) return -EINVAL;
  if (vma.kind == VMA_ANON) splitPartlyCoveredFolios(start, end);
  return 0;
}

/**
 * Reclaims what needs no swap: lazyfree pages go for good, pages of a file are unmapped, other anonymous pages stay.
 * Mirrors: madvise_pageout(); shrink_folio_list(), mm/vmscan.c; try_to_unmap_one(), mm/rmap.c
 */
function pageOut(index: u32, start: u64, end: u64): i32 {
  const vma = vmaAt(index);
  if (isHugetlb(vma)) return -EINVAL;
  const isShared = vma.kind == VMA_SHMEM;
  if (!isShared) splitPartlyCoveredFolios(start, end);
  let at = start;
  while (at < end) {
    readAt(at);
    if (!isMapped(atFlags) || (!isShared && (atFlags & PAGE_LAZYFREE) == 0)) {
      at = min(atEnd << 12, end);
      continue;
    }
    const unit = atLevel == 2 ? PMD : PAGE;
    const base = down(at, unit);
    // A huge folio of a file is reclaimed whole or not at all.
    if (base >= start && base + unit <= end) {
      startEvent(base, base + unit);
      unmapRange(base, base + unit, isShared);
      if (isShared) endEvent(base, base + unit);
      else endEventGone(base, base + unit);
    }
    at = base + unit;
  }
  return 0;
}

/** Whether the 2M at `base` has a pte table with a page of `need`. */
function hasPte(base: u64, need: u32): bool {
  let entryPtr = HOST_TREE;
  let level = HOST_LEVEL;
  while (tagOf(entryPtr) == TABLE) {
    level--;
    entryPtr = childPtr(entryPtr, indexAt(base >> 12, level));
  }
  if (tagOf(entryPtr) == LT) return ltCount(entryPtr, 0, 512, need) > 0;
  return tagOf(entryPtr) == UNIFORM && leafLevelOf(entryPtr) == 1 && (flagsOf(entryPtr) & need) == need;
}

/** Replaces the pages of a pte table by one huge page. Mirrors: collapse_huge_page(), mm/khugepaged.c */
function collapseAnon(base: u64): void {
  startEvent(base, base + PMD);
  setPmdAt(base, PMD_LEAF, PAGE_PRESENT | PAGE_OWN | PAGE_WRITABLE);
  endEventGone(base, base + PMD);
}

/**
 * Replaces the pages of a file by one huge folio: each is unmapped in an event of its own, then the pte table.
 * The next fault maps the folio whole.
 * Mirrors: collapse_file(), retract_page_tables(), mm/khugepaged.c
 */
function collapseFile(base: u64): void {
  for (let at = base; at < base + PMD; at += PAGE) {
    readAt(at);
    if (!isMapped(atFlags)) continue;
    startEvent(at, at + PAGE);
    unmapRange(at, at + PAGE, false);
    endEventGone(at, at + PAGE);
  }
  readAt(base);
  if (atLevel > 1) {
    setPmdAt(base, PMD_LEAF, PAGE_PRESENT | PAGE_UNMAPPED);
    return;
  }
  startEvent(base, base + PMD);
  setPmdAt(base, PMD_LEAF, PAGE_PRESENT | PAGE_UNMAPPED);
  endEvent(base, base + PMD);
}

/** Collapses the 2M at `base`. Returns whether it is huge afterwards. Mirrors: hpage_collapse_scan_pmd(), _file() */
function collapseAt(base: u64, isShared: bool): bool {
  readAt(base);
  if (atLevel == 2 && atFlags != 0) return true;
  if (atLevel != 1) return false;
  if (!hasPte(base, isShared ? PAGE_PRESENT : PAGE_PRESENT | PAGE_WRITABLE)) return false;
  if (isShared) collapseFile(base);
  else collapseAnon(base);
  return true;
}

/** `outcome`: COLLAPSE_SUCCEEDS or COLLAPSE_FAILS says how shared memory fares. Mirrors: madvise_collapse() */
function collapse(index: u32, start: u64, end: u64, outcome: u32): i32 {
  const vma = vmaAt(index);
  if ((vma.flags & VMA_NOHUGEPAGE) != 0 || isHugetlb(vma)) return -EINVAL;
  if (up(vma.start, PMD) + PMD > vma.end) return -EINVAL;
  if (vma.kind == VMA_ANON && vma.anonVma == 0) return -EINVAL;
  const first = up(start, PMD);
  const last = down(end, PMD);
  if (first > last) return -EINVAL;
  const isShared = vma.kind == VMA_SHMEM;
  // Without MADV_HUGEPAGE the collapse of shared memory was seen to fail.
  const allowed = !isShared || outcome == COLLAPSE_SUCCEEDS || (outcome == 0 && (vma.flags & VMA_HUGEPAGE) != 0);
  let failed = false;
  for (let base = first; base < last; base += PMD) {
    if (!allowed) {
      failed = true;
      continue;
    }
    if (collapseAt(base, isShared)) continue;
    failed = true;
    // An absent pmd ends the call (SCAN_PMD_NONE); an absent table of pmds, which collapseAt() met higher up, does not.
    if (!isShared && atLevel == 2) break;
  }
  return failed ? -EINVAL : 0;
}

/** Mirrors: hugepage_madvise(), ksm_madvise(), madvise_update_vma() */
function adviseFlags(index: u32, start: u64, end: u64, advice: u32): i32 {
  const vma = vmaAt(index);
  let flags = vma.flags;
  if (advice == MADV_HUGEPAGE) flags = (flags & ~VMA_NOHUGEPAGE) | VMA_HUGEPAGE;
  else if (advice == MADV_NOHUGEPAGE) flags = (flags & ~VMA_HUGEPAGE) | VMA_NOHUGEPAGE;
  else if (vma.kind != VMA_ANON) return 0;
  else if (advice == MADV_MERGEABLE) flags |= VMA_MERGEABLE;
  else flags &= ~VMA_MERGEABLE;
  return flags == vma.flags ? 0 : modifyVma(start, end, vma.prot, flags);
}

/** Mirrors: madvise_populate(), faultin_page_range() */
function populate(start: u64, end: u64, write: bool): i32 {
  let at = start;
  while (at < end) {
    const index = lookupVma(at);
    if (index == ctl.vmaCount) return -ENOMEM;
    if ((vmaAt(index).prot & (write ? PROT_WRITE : PROT_READ)) == 0) return -EINVAL;
    faultPage(index, at >> 12, (end - at) >> 12, write);
    // To the end of what the last fault mapped: a huge page may reach beyond the range.
    at += hostRunPages << 12;
  }
  return 0;
}

/**
 * Advice for [start, start + lengthBytes), the length rounded up to whole pages.
 * Returns: -EINVAL for unknown advice, an unaligned start or an area the advice is not for; -ENOMEM if part of the range
 * is not mapped, after the rest was done.
 * Mirrors: do_madvise(), madvise_walk_vmas(), mm/madvise.c
 */
export function hostMadvise(start: u64, lengthBytes: u64, advice: u32): i32 {
  const outcome = advice & (COLLAPSE_SUCCEEDS | COLLAPSE_FAILS);
  advice &= ~(COLLAPSE_SUCCEEDS | COLLAPSE_FAILS);
  if (!isAdvice(advice) || (start & (PAGE - 1)) != 0) return -EINVAL;
  const length = up(lengthBytes, PAGE);
  if (lengthBytes != 0 && length == 0) return -EINVAL;
  const end = start + length;
  if (end < start) return -EINVAL;
  if (length == 0) return 0;
  // Nothing is mapped beyond user addresses: the walk need not go there.
  const stop = min(end, TASK_SIZE);
  if (start >= stop) return -ENOMEM;
  if (!reserveRange(start, stop, eventsOf(advice))) return STATUS_CAPACITY;
  if (advice == MADV_POPULATE_READ || advice == MADV_POPULATE_WRITE) {
    const status = populate(start, stop, advice == MADV_POPULATE_WRITE);
    return status == 0 && stop < end ? -ENOMEM : status;
  }
  let unmappedError = stop < end ? -ENOMEM : 0;
  let at = start;
  while (at < stop) {
    const index = findVma(at);
    if (index == ctl.vmaCount) return -ENOMEM;
    const vma = vmaAt(index);
    if (at < vma.start) {
      unmappedError = -ENOMEM;
      at = vma.start;
      if (at >= stop) break;
    }
    const to = min(vma.end, stop);
    const status = advise(index, at, to, advice, outcome);
    if (status != 0) return status;
    at = to;
  }
  return unmappedError;
}

function eventsOf(advice: u32): u32 {
  switch (advice) {
    case MADV_DONTNEED:
    case MADV_FREE:
    case MADV_REMOVE:
    case MADV_COLD:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
      return EVENT_AREAS;
    default:
      return EVENT_PAGES;
  }
}

function isAdvice(advice: u32): bool {
  switch (advice) {
    case MADV_DONTNEED:
    case MADV_FREE:
    case MADV_REMOVE:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_COLD:
    case MADV_PAGEOUT:
    case MADV_POPULATE_READ:
    case MADV_POPULATE_WRITE:
    case MADV_COLLAPSE:
      return true;
    default:
      return false;
  }
}

/** Advice for [start, end), which lies within the area at `index`. Mirrors: madvise_vma_behavior() */
function advise(index: u32, start: u64, end: u64, advice: u32, outcome: u32): i32 {
  switch (advice) {
    case MADV_DONTNEED:
      return dontNeed(index, start, end);
    case MADV_FREE:
      return free(index, start, end);
    case MADV_REMOVE:
      return remove(index, start, end);
    case MADV_COLD:
      return cold(index, start, end);
    case MADV_PAGEOUT:
      return pageOut(index, start, end);
    case MADV_COLLAPSE:
      return collapse(index, start, end, outcome);
    default:
      return adviseFlags(index, start, end, advice);
  }
}

// --- Other actors on the host ----------------------------------------------------------------------------------------

/**
 * Marks pages idle, which ages them. Returns how many of the `pages` are mapped, or STATUS_CAPACITY.
 * Mirrors: page_idle_bitmap_write(), page_idle_clear_pte_refs(), mm/page_idle.c
 */
export function hostPageIdleSet(start: u64, pages: u64): i64 {
  const end = (start >> 12) + pages;
  if (start > TASK_SIZE || pages > TASK_SIZE >> 12) return 0;
  wantNothing();
  wantRangeEvents(start, end << 12, EVENT_PAGES);
  if (!reserveWanted()) return <i64>STATUS_CAPACITY;
  let mapped: i64 = 0;
  let page = start >> 12;
  while (page < end) {
    treeAt(HOST_TREE, HOST_LEVEL, page);
    const flags = atFlags;
    const level = atLevel;
    const runEnd = min(atEnd, end);
    if (!isMapped(flags)) {
      page = runEnd;
      continue;
    }
    const hva = page << 12;
    const index = lookupVma(hva);
    const onList = (flags & (PAGE_OWN | PAGE_KSM)) != 0 && index < ctl.vmaCount && !isHugetlb(vmaAt(index));
    if (level > 1) {
      // Only the head of a huge page counts, its tails do nothing.
      if (onList && (page & (PMD_PAGES - 1)) == 0) mmuNotifierAge(hva, hva + PMD);
      const next = onList ? min(down(page, PMD_PAGES) + PMD_PAGES, end) : runEnd;
      mapped += <i64>(next - page);
      page = next;
      continue;
    }
    if (onList && (flags & PAGE_FOLIO) == 0) mmuNotifierAge(hva, hva + PAGE);
    else if (onList && (page & (PMD_PAGES - 1)) == 0) ageFolio(hva);
    mapped++;
    page++;
  }
  return mapped;
}
/** Ages every pte that still maps the split huge page whose head is at `base`. */
function ageFolio(base: u64): void {
  for (let at = base; at < base + PMD; at += PAGE) {
    readAt(at);
    if ((atFlags & PAGE_FOLIO) != 0) mmuNotifierAge(at, at + PAGE);
  }
}

/**
 * Replaces every page of [start, end) that can move by another, in an event of its own; huge pages move whole.
 * Mirrors: migrate_pages(), try_to_migrate_one()
 */
export function hostMigrate(start: u64, end: u64): i32 {
  if ((start & (PAGE - 1)) != 0 || end < start || end > TASK_SIZE) return -EINVAL;
  wantNothing();
  wantRangeEvents(start, end, EVENT_PAGES);
  if (!reserveWanted()) return STATUS_CAPACITY;
  let at = start;
  while (at < end) {
    readAt(at);
    if (!isMapped(atFlags) || (atFlags & (PAGE_OWN | PAGE_KSM)) == 0) {
      at = atEnd << 12;
      continue;
    }
    const unit = atLevel == 3 ? PUD : atLevel == 2 || (atFlags & PAGE_FOLIO) != 0 ? PMD : PAGE;
    const base = down(at, unit);
    startEvent(base, base + unit);
    endEventGone(base, base + unit);
    at = base + unit;
  }
  return 0;
}

/** khugepaged found every 2M of [start, end) that has a pte table with pages. Mirrors: khugepaged_scan_mm_slot() */
export function hostKhugepaged(start: u64, end: u64): i32 {
  if (end < start || end > TASK_SIZE) return -EINVAL;
  if (!reserveRange(start, end, EVENT_PAGES)) return STATUS_CAPACITY;
  for (let base = up(start, PMD); base + PMD <= end; base += PMD) {
    const index = lookupVma(base);
    if (index == ctl.vmaCount) continue;
    const vma = vmaAt(index);
    if (base + PMD > vma.end || (vma.flags & VMA_NOHUGEPAGE) != 0 || isHugetlb(vma)) continue;
    if (!hasPte(base, PAGE_PRESENT)) continue;
    if (vma.kind == VMA_SHMEM) collapseFile(base);
    else collapseAnon(base);
  }
  return 0;
}

/**
 * KSM takes up each 4K page of [start, end), in an event of its own: an own page is write-protected and becomes the
 * shared one; a page that is shared already is replaced by another copy.
 * Mirrors: write_protect_page(), replace_page(), mm/ksm.c
 */
export function hostKsmMerge(start: u64, end: u64): i32 {
  if ((start & (PAGE - 1)) != 0 || end < start || end > TASK_SIZE) return -EINVAL;
  if (!reserveRange(start, end, EVENT_PAGES)) return STATUS_CAPACITY;
  let at = start;
  while (at < end) {
    readAt(at);
    const index = lookupVma(at);
    const isAnon = index < ctl.vmaCount && vmaAt(index).kind == VMA_ANON;
    if (!isAnon || atLevel != 1 || (atFlags & (PAGE_OWN | PAGE_KSM)) == 0) {
      at = atEnd << 12;
      continue;
    }
    const isShared = (atFlags & PAGE_KSM) != 0;
    startEvent(at, at + PAGE);
    setPteAt(at, PAGE_PRESENT | PAGE_KSM);
    if (isShared) endEventGone(at, at + PAGE);
    else endEvent(at, at + PAGE);
    at += PAGE;
  }
  return 0;
}

/**
 * /proc/self/clear_refs: 4 fires one event for the whole address space, 1 tells KVM nothing. The ptes keep their
 * permission, as in a kernel without soft-dirty bits.
 * Mirrors: clear_refs_write(), fs/proc/task_mmu.c
 */
export function hostClearRefs(kind: u32): i32 {
  if (kind == 1) return 0;
  if (kind != 4) return -EINVAL;
  wantNothing();
  wantEvent(0, ~(<u64>0));
  if (!reserveWanted()) return STATUS_CAPACITY;
  startEvent(0, ~(<u64>0));
  endEvent(0, ~(<u64>0));
  return 0;
}

/**
 * Puts another page behind the pte at `hva` and says so through change_pte, without an invalidation around it.
 * Mirrors: set_pte_at_notify(), before v6.10
 */
export function hostChangePte(hva: u64, writable: bool): i32 {
  const page = down(hva, PAGE);
  const index = lookupVma(page);
  if (index == ctl.vmaCount) return -EFAULT;
  wantNothing();
  want(<u64>(HOST_LEVEL - 2), 1);
  wantEvent(page, page + PAGE);
  if (!reserveWanted()) return STATUS_CAPACITY;
  readAt(page);
  if (isMapped(atFlags) && atLevel == 1) {
    const own = PAGE_PRESENT | PAGE_OWN | (writable ? PAGE_WRITABLE : 0);
    setPteAt(page, writable || vmaAt(index).kind != VMA_ANON ? own : PAGE_PRESENT | PAGE_KSM);
  }
  mmuNotifierChangePte(page, writable);
  return 0;
}

/**
 * No huge page can be had for [start, end): what is not mapped yet will be mapped by ptes. An input, as the state of the
 * host's free memory is not modelled.
 */
export function hostDenyHuge(start: u64, end: u64): i32 {
  if (((start | end) & (PAGE - 1)) != 0 || end <= start || end > TASK_SIZE) return -EINVAL;
  if (!reserveRange(start, end, EVENT_WHOLE)) return STATUS_CAPACITY;
  linkPteTables(HOST_TREE, HOST_LEVEL, start >> 12, end >> 12);
  return 0;
}
