// Huge pages again after dirty logging stops, and where NX took them away.
// Mirrors: arch/x86/kvm/mmu/tdp_mmu.c (zap_collapsible_spte_range in 6.12, recover_huge_pages_range in 6.16),
// arch/x86/kvm/mmu/mmu.c (kvm_recover_nx_huge_pages)

import { C_LOCK_SECTIONS, count, ctl, PROFILE_6_16 } from './control';
import { maxMappingLevel } from './mapping_level';
import { endGfnOf, Memslot } from './memslots';
import { pagesOf } from './page_table';
import {
  nextRoot,
  ROOT_DIRECT,
  tdpMmuCollapsibleTable,
  tdpMmuCountWalk,
  tdpMmuMakeHuge,
  tdpMmuZapMarked,
  tdpMmuZapTable,
} from './tdp_mmu';
import { flushRemoteTlbs, flushRemoteTlbsRange } from './tlb';
import { EV_ZAP_COLLAPSIBLE, trace } from './trace';

/**
 * Where a huge page could map what a table of `slot` maps: 6.12 zaps the table, so that faults map it huge; 6.16 puts
 * the huge leaf in its place. Requires: reserve(8, 4).
 */
export function zapCollapsible(slot: Memslot): void {
  trace(EV_ZAP_COLLAPSIBLE, 0, slot.id, 0);
  count(C_LOCK_SECTIONS, 1);
  const start = slot.baseGfn;
  const end = endGfnOf(slot);
  let flush = false;
  let root = nextRoot(0);
  while (root !== null) {
    if (root.asId == slot.asId && root.invalid == 0) {
      let gfn = start;
      while (gfn < end) {
        const level = collapsibleLevel(slot, gfn, end);
        if (level != 0 && tdpMmuCollapsibleTable(root, gfn, level)) {
          if (ctl.profile == PROFILE_6_16) {
            if (tdpMmuMakeHuge(root, gfn, level)) flush = true;
          } else {
            flushRemoteTlbsRange(gfn, pagesOf(level));
            tdpMmuZapTable(root, gfn, level, true);
          }
          gfn += pagesOf(level);
        } else {
          gfn = (gfn & ~511) + 512;
        }
      }
      // A table that gave way is not walked into.
      tdpMmuCountWalk(root, start, end, 2);
    }
    root = nextRoot(root.sequence);
  }
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
