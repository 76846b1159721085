// Huge pages again after dirty logging stops, and where NX took them away.
// Mirrors: arch/x86/kvm/mmu/tdp_mmu.c (zap_collapsible_spte_range in 6.12, recover_huge_pages_range in 6.16),
// arch/x86/kvm/mmu/mmu.c (kvm_recover_nx_huge_pages)

import { C_LOCK_SECTIONS, count, ctl, PROFILE_6_16 } from './control';
import { pagesOf } from './entry';
import { maxMappingLevel } from './mapping_level';
import { endGfnOf, Memslot } from './memslots';
import {
  nextRoot,
  ROOT_DIRECT,
  Root,
  tdpMmuCollapsibleTable,
  tdpMmuCountWalk,
  tdpMmuMakeHuge,
  tdpMmuYieldOf,
  tdpMmuZapMarked,
  tdpMmuZapTable,
} from './tdp_mmu';
import { flushRemoteTlbs, flushRemoteTlbsRange } from './tlb';
import { EV_ZAP_COLLAPSIBLE, trace } from './trace';

/**
 * Where a huge page could map what a table of `slot` maps: 6.12 zaps the table, so that faults map it huge; 6.16 puts
 * the huge leaf in its place, and flushes once for each root, and before it yields. Requires: reserve(8, 4).
 */
export function zapCollapsible(slot: Memslot): void {
  trace(EV_ZAP_COLLAPSIBLE, 0, slot.id, 0);
  count(C_LOCK_SECTIONS, 1);
  let root = nextRoot(0);
  while (root !== null) {
    if (root.asId == slot.asId && root.invalid == 0) collapseIn(root, slot);
    root = nextRoot(root.sequence);
  }
}

function collapseIn(root: Root, slot: Memslot): void {
  const start = slot.baseGfn;
  const end = endGfnOf(slot);
  // The visits are counted when all is done, and the yield with them; what it comes after is flushed on the way.
  let yieldGfn = tdpMmuYieldOf(root, start, end, 2);
  let isPassedBy = false;
  let flush = false;
  let gfn = start;
  while (gfn < end) {
    let level = collapsibleLevel(slot, gfn, end);
    if (level != 0 && !tdpMmuCollapsibleTable(root, gfn, level)) level = 0;
    // A walk never comes to an entry below a 1G one that gives way.
    const isAbove = level == 3 && yieldGfn >= gfn && yieldGfn < gfn + pagesOf(3);
    if (gfn >= yieldGfn && !isAbove) {
      if (flush) flushRemoteTlbs();
      flush = false;
      yieldGfn = end;
    }
    let collapsed: bool = false;
    if (level != 0) {
      collapsed = true;
      if (ctl.profile == PROFILE_6_16) {
        collapsed = tdpMmuMakeHuge(root, gfn, level);
        if (collapsed) flush = true;
      } else {
        flushRemoteTlbsRange(gfn, pagesOf(level));
        tdpMmuZapTable(root, gfn, level, true);
      }
    }
    if (isAbove && collapsed) {
      isPassedBy = true;
      yieldGfn = end;
    }
    gfn = level != 0 ? gfn + pagesOf(level) : (gfn & ~511) + 512;
  }
  if (flush && yieldGfn < end) {
    flushRemoteTlbs();
    flush = false;
  }
  // A table that gave way is not walked into; a yield that was passed by waits for the next walk.
  if (isPassedBy) ctl.yieldArmed = 0;
  tdpMmuCountWalk(root, start, end, 2);
  if (isPassedBy) ctl.yieldArmed = 1;
  if (flush) flushRemoteTlbsRange(start, slot.npages);
}

/** The largest level at which a table at `gfn`, a region's start inside the slot, may give way; 0 if none. */
function collapsibleLevel(slot: Memslot, gfn: u64, end: u64): i32 {
  if ((gfn & 511) != 0) return 0;
  const level = maxMappingLevel(slot, gfn);
  if (level >= 3 && (gfn & 0x3ffff) == 0 && gfn + pagesOf(3) <= end) return 3;
  return level >= 2 ? 2 : 0;
}

/**
 * One run of the NX recovery worker over at most `limit` tables: each nx-disallowed table is zapped, one flush for all.
 * Mirrors: kvm_recover_nx_huge_pages()
 */
export function recoverNxHugePages(limit: u32): i32 {
  count(C_LOCK_SECTIONS, 1);
  let zappedTables: u32 = 0;
  let root = nextRoot(0);
  while (root !== null && zappedTables < limit) {
    if (root.kind == ROOT_DIRECT && root.invalid == 0) zappedTables += tdpMmuZapMarked(root, limit - zappedTables);
    root = nextRoot(root.sequence);
  }
  if (zappedTables != 0) flushRemoteTlbs();
  return <i32>zappedTables;
}
