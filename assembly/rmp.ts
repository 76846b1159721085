// The RMP: for each page of a guest_memfd, whether it is assigned to the guest, as which gpa, at which level, and whether
// the guest has validated it.
//
// A tree for each file, keyed by page. A 2M entry is the flag RMP_2M on all 512 pages of an aligned block, so that a
// terabyte of alike entries is one entry of the tree, and PSMASH clears a flag. A page's gpa is stored as its origin: the
// number of the placement (gfn less page index) that the file was bound at when the page was assigned. It stays when the
// file is bound elsewhere. All pages are of one guest: the ASID is the VM's.
//
//   origins of a file, at RMP_ORIGINS_BASE:  delta u64 │ pages u64   each, pages = 0 marks a free one
//
// Mirrors: arch/x86/virt/svm/sev.c (rmp_make_private, rmp_make_shared, psmash, snp_lookup_rmpentry),
// arch/x86/kvm/svm/sev.c (sev_gmem_prepare, sev_gmem_invalidate). Left out: pages that no guest_memfd owns (VMSA, firmware),
// updates that fail because a page is in use.

import { wantCuts } from './blocks';
import {
  C_CACHE_FLUSHES,
  C_PSMASH,
  C_RMP_PRIVATE_2M,
  C_RMP_PRIVATE_4K,
  C_RMP_SHARED_2M,
  C_RMP_SHARED_4K,
  count,
  ctl,
} from './control';
import { Gmem, gmemIndexOf, npagesOf, PAGE_FOLIO, PAGES_LEVEL, pagesTree } from './gmems';
import { RMP_ORIGINS_BASE, RMP_ORIGINS_BYTES, RMP_ORIGINS_MAX } from './layout';
import { Memslot } from './memslots';
import { freeSubtree, treeCount, treeFlags, treeModify, treeRunEnd, treeSet } from './page_table';
import { EV_PSMASH, EV_RMP_MAKE_PRIVATE, EV_RMP_MAKE_SHARED, trace2 } from './trace';

/** Bit 0, as a tree needs it: a page that is not assigned is the host's and has no entry. */
export const RMP_ASSIGNED: u32 = 1;
export const RMP_2M: u32 = 2;
export const RMP_VALIDATED: u32 = 8;
// The other five bits are the origin's number.
if (RMP_ORIGINS_MAX != 32) ERROR('the flags of an RMP entry have room for 32 origins');
function originBits(origin: u32): u32 {
  return ((origin & 1) << 2) | ((origin >> 1) << 4);
}
function originOf(flags: u32): u32 {
  return ((flags >> 2) & 1) | ((flags >> 4) << 1);
}

/** Pages of a 2M entry. */
const BLOCK: u64 = 512;

@unmanaged
class Origin {
  delta: u64;
  pages: u64;
}
function originAt(gmem: Gmem, origin: u32): Origin {
  return changetype<Origin>(RMP_ORIGINS_BASE + <usize>gmemIndexOf(gmem) * RMP_ORIGINS_BYTES + ((<usize>origin) << 4));
}

function rmpTree(gmem: Gmem): usize {
  return changetype<usize>(gmem) + offsetof<Gmem>('rmpLo');
}

/** The number of the origin `delta`, or of a free one; RMP_ORIGINS_MAX if all are taken. */
function findOrigin(gmem: Gmem, delta: u64): u32 {
  let free = RMP_ORIGINS_MAX;
  for (let origin: u32 = 0; origin < RMP_ORIGINS_MAX; origin++) {
    const record = originAt(gmem, origin);
    if (record.pages == 0) free = min(free, origin);
    else if (record.delta == delta) return origin;
  }
  return free;
}

/** gfn less page index where `slot` binds its file. */
function deltaOf(slot: Memslot): u64 {
  return slot.baseGfn - slot.gmemPgoff;
}

/** Whether pages of `gmem` can be assigned where `slot` binds them. */
export function rmpHasRoom(gmem: Gmem, slot: Memslot): bool {
  return findOrigin(gmem, deltaOf(slot)) < RMP_ORIGINS_MAX;
}

/** Forgets a file's entries: it is new, or all of its pages are shared again. */
export function rmpForget(gmem: Gmem): void {
  freeSubtree(rmpTree(gmem), PAGES_LEVEL);
  memory.fill(changetype<usize>(originAt(gmem, 0)), 0, RMP_ORIGINS_BYTES);
}

// --- Looking ---------------------------------------------------------------------------------------------------------

/** The entry of a page: 0 if it is not assigned. Mirrors: snp_lookup_rmpentry() */
export function rmpFlags(gmem: Gmem, page: u64): u32 {
  return treeFlags(rmpTree(gmem), PAGES_LEVEL, page);
}
/** The gfn that the entry `flags` of `page` names. */
export function rmpGfn(gmem: Gmem, page: u64, flags: u32): u64 {
  return page + originAt(gmem, originOf(flags)).delta;
}
/** End of the run of alike entries from `page` on, below `limit`. */
export function rmpRunEnd(gmem: Gmem, page: u64, limit: u64): u64 {
  return treeRunEnd(rmpTree(gmem), PAGES_LEVEL, page, limit);
}
/** The level of a page's entry; 1 if it has none. Mirrors: sev_private_max_mapping_level() */
export function rmpLevel(gmem: Gmem, page: u64): i32 {
  return (rmpFlags(gmem, page) & RMP_2M) != 0 ? 2 : 1;
}

// --- Changing --------------------------------------------------------------------------------------------------------

/** Adds what changing the entries of [start, end) needs, and splitting the 2M entries at its ends. */
export function wantRmp(gmem: Gmem, start: u64, end: u64): void {
  const tree = rmpTree(gmem);
  wantCuts(tree, PAGES_LEVEL, start, end);
  wantCuts(tree, PAGES_LEVEL, start & ~(BLOCK - 1), end & ~(BLOCK - 1));
  wantCuts(tree, PAGES_LEVEL, (start | (BLOCK - 1)) + 1, (end | (BLOCK - 1)) + 1);
}

function traceRmp(event: u32, level: i32, gfn: u64, page: u64, entries: u64): void {
  if (ctl.traceOn != 0) trace2(event, <u32>level, 0, gfn, page, entries);
}

/** Assigns [start, end), none of which is, with entries of `level`. Mirrors: rmp_make_private() */
function makePrivate(gmem: Gmem, origin: u32, start: u64, end: u64, level: i32): void {
  const record = originAt(gmem, origin);
  const entries = level == 2 ? (end - start) / BLOCK : end - start;
  traceRmp(EV_RMP_MAKE_PRIVATE, level, start + record.delta, start, entries);
  record.pages += end - start;
  const flags = RMP_ASSIGNED | originBits(origin) | (level == 2 ? RMP_2M : 0);
  treeSet(rmpTree(gmem), PAGES_LEVEL, start, end, 1, flags);
  count(level == 2 ? C_RMP_PRIVATE_2M : C_RMP_PRIVATE_4K, entries);
}

/**
 * Assigns what is not of the resident pages [start, end), which `slot` binds, as one fault after the other would: a 2M
 * entry for a 2M folio none of whose pages is assigned, 4K entries else. `start` and `end` may lie inside a folio: its
 * 2M entry is for all of it. Requires: room is reserved, rmpHasRoom().
 * Mirrors: sev_gmem_prepare()
 */
export function rmpPrepare(gmem: Gmem, slot: Memslot, start: u64, end: u64): void {
  const delta = deltaOf(slot);
  const tree = rmpTree(gmem);
  let page = start;
  while (page < end) {
    const run = rmpRunEnd(gmem, page, end);
    if (rmpFlags(gmem, page) != 0) {
      page = run;
      continue;
    }
    const origin = findOrigin(gmem, delta);
    const record = originAt(gmem, origin);
    if (record.pages == 0) record.delta = delta;
    const alike = treeRunEnd(pagesTree(gmem), PAGES_LEVEL, page, run);
    if ((treeFlags(pagesTree(gmem), PAGES_LEVEL, page) & PAGE_FOLIO) == 0) {
      makePrivate(gmem, origin, page, alike, 1);
      page = alike;
      continue;
    }
    const block = page & ~(BLOCK - 1);
    const isFree = treeCount(tree, PAGES_LEVEL, block, block + BLOCK, RMP_ASSIGNED) == 0;
    if ((delta & (BLOCK - 1)) == 0 && isFree) {
      // The run of folios from here on: the last may reach beyond the pages asked for.
      const whole = max(block + BLOCK, alike & ~(BLOCK - 1));
      makePrivate(gmem, origin, block, whole, 2);
      page = whole;
    } else {
      const part = min(alike, block + BLOCK);
      makePrivate(gmem, origin, page, part, 1);
      page = part;
    }
  }
}

/** Makes 512 entries of 4K out of the 2M entry of `page`, alike but for the level. Mirrors: psmash() */
export function rmpPsmash(gmem: Gmem, page: u64): void {
  const block = page & ~(BLOCK - 1);
  traceRmp(EV_PSMASH, 2, rmpGfn(gmem, block, rmpFlags(gmem, block)), block, 1);
  treeModify(rmpTree(gmem), PAGES_LEVEL, block, block + BLOCK, RMP_ASSIGNED | RMP_2M, RMP_2M, 0);
  count(C_PSMASH, 1);
}

/** Makes the alike entries of [start, end) shared, and flushes the caches of each. Mirrors: rmp_make_shared() */
function makeShared(gmem: Gmem, flags: u32, start: u64, end: u64): void {
  const isHuge = (flags & RMP_2M) != 0;
  const record = originAt(gmem, originOf(flags));
  const entries = isHuge ? (end - start) / BLOCK : end - start;
  traceRmp(EV_RMP_MAKE_SHARED, isHuge ? 2 : 1, start + record.delta, start, entries);
  record.pages -= end - start;
  count(isHuge ? C_RMP_SHARED_2M : C_RMP_SHARED_4K, entries);
  count(C_CACHE_FLUSHES, entries);
}

/**
 * The pages [start, end) go back to the host: 2M entries inside the range with one update each, all others by 4K, a 2M
 * entry that the range cuts after a PSMASH. Requires: wantRmp() of the range is reserved. Mirrors: sev_gmem_invalidate()
 */
export function rmpInvalidate(gmem: Gmem, start: u64, end: u64): void {
  end = min(end, npagesOf(gmem));
  let page = start;
  while (page < end) {
    let run = rmpRunEnd(gmem, page, end);
    const flags = rmpFlags(gmem, page);
    if ((flags & RMP_2M) != 0) {
      const block = page & ~(BLOCK - 1);
      if (block != page || block + BLOCK > end) {
        rmpPsmash(gmem, page);
        continue;
      }
      run &= ~(BLOCK - 1);
    }
    if (flags != 0) makeShared(gmem, flags, page, run);
    page = run;
  }
  if (start < end) treeSet(rmpTree(gmem), PAGES_LEVEL, start, end, 1, 0);
}

/** The guest validates the assigned pages [start, end), or rescinds that. Returns how many changed. */
export function rmpValidate(gmem: Gmem, start: u64, end: u64, validate: bool): u64 {
  const tree = rmpTree(gmem);
  const validated = treeCount(tree, PAGES_LEVEL, start, end, RMP_ASSIGNED | RMP_VALIDATED);
  if (!validate) {
    treeModify(tree, PAGES_LEVEL, start, end, RMP_ASSIGNED, RMP_VALIDATED, 0);
    return validated;
  }
  return treeModify(tree, PAGES_LEVEL, start, end, RMP_ASSIGNED, 0, RMP_VALIDATED) - validated;
}
