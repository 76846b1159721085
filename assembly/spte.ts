// What the flags of an spte mean. Pure.
//
// The eight flags are the planes of a leaf table (leaf_table.ts). Executable is the absence of NX. KIND says on a
// direct root that guest_memfd backs the leaf; a mirror's leaf never has it: what is PENDING stands in the S-EPT.
// Mirrors: arch/x86/kvm/mmu/spte.h

export const PRESENT: u32 = 1;
export const WRITABLE: u32 = 2;
export const ACCESSED: u32 = 4;
export const DIRTY: u32 = 8;
export const HOST_WRITABLE: u32 = 16;
export const MMU_WRITABLE: u32 = 32;
export const NX: u32 = 64;
export const KIND: u32 = 128;
if ((PRESENT | WRITABLE | ACCESSED | DIRTY | HOST_WRITABLE | MMU_WRITABLE | NX | KIND) != 255) {
  ERROR('two flags share a bit');
}
