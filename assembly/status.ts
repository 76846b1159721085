// Status numbers that cross the boundary: negated errnos as the kernel returns them, and a few of the simulator's own.
//
// A door returns 0 or a positive result on success, -errno when KVM refuses, STATUS_* below -4096 for what only a
// simulator can answer.
// Mirrors: include/uapi/asm-generic/errno-base.h, errno.h

export const ENOENT: i32 = 2;
export const EINTR: i32 = 4;
export const EIO: i32 = 5;
export const EBADF: i32 = 9;
export const EAGAIN: i32 = 11;
export const ENOMEM: i32 = 12;
export const EACCES: i32 = 13;
export const EFAULT: i32 = 14;
export const EBUSY: i32 = 16;
export const EEXIST: i32 = 17;
export const EINVAL: i32 = 22;
export const ENODEV: i32 = 19;
export const ENOTTY: i32 = 25;
export const EOPNOTSUPP: i32 = 95;
export const EHWPOISON: i32 = 133;

/** The engine's memory cannot hold the operation's worst case; nothing was changed. */
export const STATUS_CAPACITY: i32 = -5000;
/** Another operation is paused where KVM holds mmu_lock or slots_lock. */
export const STATUS_OPERATION_PAUSED: i32 = -5002;
/** The VM was destroyed. */
export const STATUS_DESTROYED: i32 = -5003;
/** All memslots together would exceed the capacity that the VM was created with. */
export const STATUS_SLOTS_FULL: i32 = -5005;
/** No such vCPU, fault or other handle. */
export const STATUS_NO_HANDLE: i32 = -5004;
