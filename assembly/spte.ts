// What the flags of an spte mean. Pure.
//
// The eight flags are the planes of a leaf table (leaf_table.ts). Executable is the absence of NX. KIND says on a
// direct root that the leaf is backed by guest_memfd (private), on a mirror root that the page is PENDING.
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

export const LEVEL_4K: i32 = 1;
export const LEVEL_2M: i32 = 2;
export const LEVEL_1G: i32 = 3;
