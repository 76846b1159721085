// The largest level at which a gfn may be mapped: what attributes, the slot's shape and the host's own mapping allow.
// Mirrors: arch/x86/kvm/mmu/mmu.c (__kvm_mmu_max_mapping_level, kvm_mmu_max_mapping_level)

import { hostLevelAt } from './host_mm';
import { memIsPrivate } from './mem_attributes';
import { isMixed, MEM_GUEST_MEMFD, Memslot, shapeForbids } from './memslots';

/** The largest level up to `maxLevel` that neither the slot's shape nor mixed attributes forbid at `gfn`. */
export function allowedLevel(slot: Memslot, gfn: u64, maxLevel: i32): i32 {
  let level = maxLevel;
  while (level > 1 && (shapeForbids(slot, level, gfn) || isMixed(slot, level, gfn))) level--;
  return level;
}

/** The level that dirty logging's end recovers huge pages to: private memory stays mapped by 4K pages. */
export function maxMappingLevel(slot: Memslot, gfn: u64): i32 {
  if ((slot.flags & MEM_GUEST_MEMFD) != 0 && memIsPrivate(gfn)) return 1;
  const level = allowedLevel(slot, gfn, 3);
  if (level == 1) return 1;
  return min(level, hostLevelAt(slot.hva + ((gfn - slot.baseGfn) << 12)));
}
