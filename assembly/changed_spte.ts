// The funnel of changes of sptes: it checks that the kernel allows the transition, and reports it. Runs within a leaf table,
// which become other leaves or nothing and so are allowed, are reported by their walk (tdp_iter.ts, emitLeafTable()).
//
// Counts of leaves and tables are kept where a run is changed (tdp_mmu.ts); what is one entry in the kernel is a run of
// alike entries here.
// Mirrors: handle_changed_spte(), __handle_changed_spte() (arch/x86/kvm/mmu/tdp_mmu.c). Left out: struct page's bits.

import { ctl } from './control';
import { SPTE_FROZEN, SPTE_LEAF, SPTE_MMIO, SPTE_NONPRESENT, SPTE_TABLE, traceSptes } from './trace';

/** The bits of a leaf's code that say which page backs it: a leaf gives way to a leaf of the same kind only. */
const KIND_CODE: u32 = 1 << 9;

/**
 * `entries` sptes of `level` from `gfn` on changed from `oldCode` to `newCode` (trace.ts). A transition that the kernel
 * would warn of or die of is a bug of ours.
 */
export function handleChangedSptes(
  asId: u32,
  mirror: u32,
  level: i32,
  gfn: u64,
  oldCode: u32,
  newCode: u32,
  entries: u32,
): void {
  const was = oldCode & 7;
  const is = newCode & 7;
  assert(level >= 1 && level <= 5, 'an spte has a level from 1 to 5');
  assert(oldCode != newCode, 'an spte that did not change was reported');
  assert(is != SPTE_LEAF || level <= 3, 'a leaf above 1G');
  assert((was != SPTE_TABLE && is != SPTE_TABLE) || level > 1, 'a table below a 4K entry');
  assert(was != SPTE_TABLE || is != SPTE_TABLE, 'a table gave way to a table');
  assert(was != SPTE_NONPRESENT || is != SPTE_NONPRESENT, 'non-present gave way to non-present');
  assert(was != SPTE_FROZEN || is == SPTE_LEAF || is == SPTE_NONPRESENT, 'FROZEN thawed to something else');
  assert(is != SPTE_MMIO || was == SPTE_NONPRESENT || was == SPTE_MMIO || was == SPTE_LEAF, 'MMIO over a table');
  assert(
    was != SPTE_LEAF || is != SPTE_LEAF || mirror != 0 || ((oldCode ^ newCode) & KIND_CODE) == 0,
    'a leaf swapped its pfn',
  );
  if (ctl.traceOn != 0) traceSptes(asId, mirror, level, gfn, oldCode, newCode, entries);
}
