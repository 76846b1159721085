// The memory map: each region starts where the one before ends. Compile-time addresses up to the ring, whose size the
// caller chooses; the free-block stacks and the arena share what is left.
//
//   0        SCRATCH  of single functions
//   ┊        CONTROL  scalars and counters (control.ts): low, as short addresses make short code
//   ┊        TEXTS    of the debug build's assertions
//   ┊        PAUSE    the stack of a paused operation
//   ┊        IO       results that do not fit registers
//   ┊        BITMAP   the argument of KVM_CLEAR_DIRTY_LOG
//   ┊        MEMSLOTS records, then their orders by gfn and by hva
//   ┊        ROOTS, VCPUS, FAULTS, GMEM, RMP_ORIGINS, PSC, VMAS, SIDE, LOSSES
//   ┊        RING     trace records
//   ┊        STACKS   free blocks, one stack a size class
//   ┊        ARENA    tables and planes, in blocks of 64 bytes
//
// TypeScript sizes the memory from the guest; it never grows. Untouched regions cost no host memory.

export const CONTROL_BASE: usize = 1024;
export const CONTROL_BYTES: usize = 7 * 1024;

/** memoryBase of asconfig.json. */
export const TEXTS_BASE: usize = CONTROL_BASE + CONTROL_BYTES;
export const TEXTS_BYTES: usize = 16 * 1024;

export const PAUSE_BASE: usize = TEXTS_BASE + TEXTS_BYTES;
export const PAUSE_BYTES: usize = 8 * 1024;

export const IO_BASE: usize = PAUSE_BASE + PAUSE_BYTES;
export const IO_BYTES: usize = 2 * 1024 * 1024;

/** Apart from IO: answers to questions must not change the argument of a paused operation. */
export const BITMAP_BASE: usize = IO_BASE + IO_BYTES;
export const BITMAP_BYTES: usize = 2 * 1024 * 1024;

export const MEMSLOT_BYTES: usize = 128;
/** KVM_USER_MEM_SLOTS of x86: 32767 - KVM_INTERNAL_MEM_SLOTS (3). */
export const USER_MEM_SLOTS: u32 = 32764;
export const MEMSLOTS_MAX: u32 = 65536;
export const MEMSLOTS_BASE: usize = BITMAP_BASE + BITMAP_BYTES;
export const SLOT_ORDER_BASE: usize = MEMSLOTS_BASE + <usize>MEMSLOTS_MAX * MEMSLOT_BYTES;
/** Two address spaces, two orders (gfn, hva), one u32 a slot. */
export const SLOT_ORDER_BYTES: usize = 2 * 2 * 32768 * 4;

export const ROOT_BYTES: usize = 64;
export const ROOTS_MAX: u32 = 256;
export const ROOTS_BASE: usize = SLOT_ORDER_BASE + SLOT_ORDER_BYTES;

export const VCPU_BYTES: usize = 64;
export const VCPUS_MAX: u32 = 4096;
export const VCPUS_BASE: usize = ROOTS_BASE + <usize>ROOTS_MAX * ROOT_BYTES;

export const FAULT_BYTES: usize = 128;
export const FAULTS_MAX: u32 = 1024;
export const FAULTS_BASE: usize = VCPUS_BASE + <usize>VCPUS_MAX * VCPU_BYTES;

export const GMEM_BYTES: usize = 96;
export const GMEMS_MAX: u32 = 4096;
export const GMEM_BASE: usize = FAULTS_BASE + <usize>FAULTS_MAX * FAULT_BYTES;

/** Where in the guest a file's RMP entries say its pages are: so many placements at once, 16 bytes each (rmp.ts). */
export const RMP_ORIGINS_MAX: u32 = 32;
export const RMP_ORIGINS_BYTES: usize = <usize>RMP_ORIGINS_MAX * 16;
export const RMP_ORIGINS_BASE: usize = GMEM_BASE + <usize>GMEMS_MAX * GMEM_BYTES;

/** A page-state change of a vCPU on its way (sev.ts). */
export const PSC_BYTES: usize = 2048;
export const PSC_BASE: usize = RMP_ORIGINS_BASE + <usize>GMEMS_MAX * RMP_ORIGINS_BYTES;

export const VMA_BYTES: usize = 40;
export const VMAS_MAX: u32 = 65536;
export const VMAS_BASE: usize = PSC_BASE + <usize>VCPUS_MAX * PSC_BYTES;

export const SIDE_BYTES: usize = 16;
/** A power of two. */
export const SIDE_CAPACITY: u32 = 16384;
export const SIDE_BASE: usize = VMAS_BASE + <usize>VMAS_MAX * VMA_BYTES;

export const LOSS_BYTES: usize = 48;
export const LOSSES_MAX: u32 = 4096;
export const LOSSES_BASE: usize = SIDE_BASE + <usize>SIDE_CAPACITY * SIDE_BYTES;

export const RING_BASE: usize = (LOSSES_BASE + <usize>LOSSES_MAX * LOSS_BYTES + 65535) & ~65535;

export const TRACE_RECORD_BYTES: usize = 16;

/** Size classes of the arena in blocks of 64 bytes: one plane, four planes, an upper table. */
export const CLASS_COUNT: i32 = 3;
export const CLASS_PLANE: i32 = 0;
export const CLASS_QUAD: i32 = 1;
export const CLASS_UPPER: i32 = 2;
export const QUAD_BLOCKS: u32 = 4;
export const UPPER_BLOCKS: u32 = 128;
