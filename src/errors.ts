// What the API throws, the one place where a status of the engine becomes text, and the checks of what callers pass.

/** Linux errno names of the numbers that the engine returns. */
const ERRNO_NAMES: Readonly<Record<number, string>> = {
  1: 'EPERM',
  2: 'ENOENT',
  4: 'EINTR',
  5: 'EIO',
  9: 'EBADF',
  11: 'EAGAIN',
  12: 'ENOMEM',
  13: 'EACCES',
  14: 'EFAULT',
  16: 'EBUSY',
  17: 'EEXIST',
  19: 'ENODEV',
  22: 'EINVAL',
  25: 'ENOTTY',
  27: 'EFBIG',
  95: 'EOPNOTSUPP',
  133: 'EHWPOISON',
};

const STATUS_CAPACITY = -5000;
const STATUS_OPERATION_PAUSED = -5002;
const STATUS_DESTROYED = -5003;
const STATUS_NO_HANDLE = -5004;
/** All memslots together would exceed `memory`. */
export const STATUS_SLOTS_FULL = -5005;

/** The name of an errno: errnoName(22) is 'EINVAL'. */
export function errnoName(errno: number): string {
  return ERRNO_NAMES[errno] ?? `errno ${errno}`;
}

/**
 * KVM (or the host) refuses what was asked, with the errno that the kernel returns. Nothing was changed, but by calls that
 * go page by page or step by step, as the kernel's do: what they did before the refusal stays done (`left`, `done`).
 */
export class KvmError extends Error {
  override readonly name = 'KvmError';
  /** What KVM_PRE_FAULT_MEMORY left over, where the call has such a result. */
  left?: { gpa: bigint; size: bigint };
  /** Of a call for many ranges: how many were done before the one that was refused. */
  done?: number;
  /** Where guestMemfd.setMemoryAttributes() met a folio with an elevated refcount, in bytes of the file. */
  errorOffset?: bigint;

  /** The errno's name, such as 'EINVAL'. */
  readonly code: string;
  /** The method that was called. */
  readonly call: string;

  constructor(code: string, call: string, message: string) {
    super(message);
    this.code = code;
    this.call = call;
  }
}

/** The simulator itself failed: its VM is dead, every later call throws this again. Please report it. */
export class EngineFault extends Error {
  override readonly name = 'EngineFault';
}

function hex(value: number | bigint): string {
  return `0x${value.toString(16)}`;
}

/** Values as an error shows them: addresses and sizes in hex, names before them. */
function describe(values: Readonly<Record<string, unknown>>): string {
  return Object.entries(values)
    .filter(([, value]) => value !== undefined)
    .map(([name, value]) => {
      const shown =
        typeof value === 'bigint' || (typeof value === 'number' && value > 4095) ? hex(value) : JSON.stringify(value);
      return `${name} ${shown}`;
    })
    .join(', ');
}

/** The error for a negative status of `call`, whose arguments were `values`. */
export function errorOf(status: number, call: string, values: Readonly<Record<string, unknown>>): KvmError {
  const shown = describe(values);
  const said = (code: string, why: string) => new KvmError(code, call, `${call}(${shown}): ${code}: ${why}`);
  if (status === STATUS_CAPACITY) {
    return said('ENOMEM', 'the VM would outgrow its memory: raise `memory` in createVm(); nothing was changed');
  }
  if (status === STATUS_OPERATION_PAUSED) {
    return said('EBUSY', 'another operation of this VM is paused while it holds a lock that this one needs');
  }
  if (status === STATUS_DESTROYED) return said('EBADF', 'the VM was destroyed');
  if (status === STATUS_NO_HANDLE) return said('EINVAL', 'no such vCPU, fault or root');
  const code = errnoName(-status);
  return said(code, WHY_OF[call]?.[code] ?? WHY[code] ?? 'refused');
}

/** `error`, of one part of a call for `count`, where `done` were done before it. */
export function errorAfter(done: number, count: number, error: KvmError): KvmError {
  const said = error.message.replace('; nothing was changed', '');
  const after = new KvmError(error.code, error.call, `${said}; ${done} of ${count} ranges were done before it`);
  after.done = done;
  return after;
}

const WHY: Readonly<Record<string, string>> = {
  EINVAL: 'KVM refuses these arguments',
  EEXIST: 'the gfns overlap another memslot',
  ENOENT: 'there is no such thing',
  EBADF: 'the descriptor is not open',
  EFAULT: 'nothing backs that address',
  EIO: 'the VM is dead',
  EINTR: 'it would be retried for ever: a signal ends it',
  ENOMEM: 'out of memory',
  EOPNOTSUPP: 'not supported by this file or kernel',
  EHWPOISON: 'the page is poisoned',
  EBUSY: 'the kernel would sleep until open notifier events have ended and begun faults are finished',
  EFBIG: 'beyond the largest file',
  ENODEV: 'the file cannot be mapped: create it with flag MMAP (1)',
  ENOTTY: 'there is no such ioctl under this filterForm',
  EAGAIN: 'someone else holds a reference of the folio at errorOffset',
};

/** Where a call means something else by an errno. */
const WHY_OF: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  accept: {
    EBUSY: 'the module was busy at each try',
    EFAULT: 'the gfn is not private, or no guest_memfd backs it',
    EINTR: 'an invalidation of the gfn is open: the fault would be retried until it ends',
    EIO: 'the VM is dead, or the module refused',
  },
  initMemRegion: {
    EBUSY: 'the module was busy, or an invalidation of the gfn is open',
    EEXIST: 'a page was added before',
    EINTR: 'a signal came after `signalAfter` pages',
    EIO: 'the VM is dead, or the module refused',
  },
  madvise: { ENOMEM: 'a part of the range is not mapped, or there would be too many areas' },
};

/** Throws the error of a negative status; returns any other. */
export function check(status: number, call: string, values: Readonly<Record<string, unknown>>): number {
  if (status < 0) throw errorOf(status, call, values);
  return status;
}

// --- What the caller passed ------------------------------------------------------------------------------------------

const U64_END = 2n ** 64n;

/** A u64 argument of an ioctl or a system call: an integer from 0 to 2^64 - 1. */
export type U64 = number | bigint;

/**
 * A u64 as two u32 halves, low first.
 * @throws {TypeError} if `value` is neither number nor bigint
 * @throws {RangeError} if it is no integer, negative or above 2^64 - 1
 */
export function halvesOf(value: unknown, name: string): [low: number, high: number] {
  if (typeof value === 'number') {
    if (!Number.isInteger(value)) throw new RangeError(`${name} is ${value}: it must be an integer`);
    if (value < 0) throw new RangeError(`${name} is ${value}: it must not be negative`);
    if (value <= Number.MAX_SAFE_INTEGER) return [value >>> 0, Math.floor(value / 4294967296)];
    value = BigInt(value);
  }
  if (typeof value !== 'bigint') throw new TypeError(`${name} is ${String(value)}: it must be a number or a bigint`);
  if (value < 0n || value >= U64_END) throw new RangeError(`${name} is ${value}: it must be within 0 and 2^64 - 1`);
  return [Number(value & 0xffffffffn), Number(value >> 32n)];
}

/** The low half of a u64, signed, as the engine takes it; checks as halvesOf(), which it spares the usual numbers. */
export function lowHalf(value: unknown, name: string): number {
  if (typeof value === 'number' && value >= 0 && Number.isSafeInteger(value)) return value | 0;
  return halvesOf(value, name)[0];
}
/** The high half of a u64 that lowHalf() has checked. */
export function highHalf(value: number | bigint): number {
  if (typeof value === 'number' && value <= Number.MAX_SAFE_INTEGER) return Math.floor(value / 4294967296);
  return halvesOf(value, '')[1];
}

/**
 * An integer from `low` to `high`.
 * @throws {TypeError} if `value` is not a number
 * @throws {RangeError} if it is no integer or outside the limits
 */
export function integer(value: unknown, name: string, low: number, high: number): number {
  if (Number.isInteger(value) && (value as number) >= low && (value as number) <= high) return value as number;
  throw noInteger(value, name, low, high);
}
// What errors say stands apart: V8 inlines what is short into the calls of small operations.
function noInteger(value: unknown, name: string, low: number, high: number): TypeError | RangeError {
  if (typeof value !== 'number') return new TypeError(`${name} is ${String(value)}: it must be a number`);
  if (!Number.isInteger(value)) return new RangeError(`${name} is ${value}: it must be an integer`);
  return new RangeError(`${name} is ${value}: it must be within ${low} and ${high}`);
}

export function object(value: unknown, name: string): void {
  if (typeof value !== 'object' || value === null) throw notAnObject(value, name);
}
function notAnObject(value: unknown, name: string): TypeError {
  return new TypeError(`${name} is ${String(value)}: it must be an object`);
}

/** @throws {TypeError} if `value` is not a boolean */
export function boolean(value: unknown, name: string): boolean {
  if (typeof value !== 'boolean') throw notABoolean(value, name);
  return value;
}

function notABoolean(value: unknown, name: string): TypeError {
  return new TypeError(`${name} is ${String(value)}: it must be a boolean`);
}

/** As boolean(), of what may be left out. */
export function flag(value: unknown, name: string, byDefault: boolean): boolean {
  return value === undefined ? byDefault : boolean(value, name);
}

/** One of a list of words. */
export function oneOf<T extends string>(value: unknown, name: string, words: readonly T[]): T {
  if (typeof value === 'string' && (words as readonly string[]).includes(value)) return value as T;
  throw new (typeof value === 'string' ? RangeError : TypeError)(
    `${name} is ${JSON.stringify(value)}: it must be one of ${words.join(', ')}`,
  );
}
