// File descriptors, numbered process-wide: who owns each and what it is. The one state kept outside a VM's memory;
// which slot binds which file is in the VM.

export type FdKind = 'guest_memfd' | 'other';

interface OpenFile {
  kind: FdKind;
  /** The VM whose guest_memfd it is. */
  owner: object | undefined;
}

const files = new Map<number, OpenFile>();
const FIRST_FD = 3;
const FD_LIMIT = 2 ** 31 - 1;

function refuseNumber(fd: unknown): void {
  if (typeof fd !== 'number') throw new TypeError(`fd is ${String(fd)}: it must be a number`);
  if (!Number.isInteger(fd) || fd < 0 || fd > FD_LIMIT) {
    throw new RangeError(`fd is ${fd}: it must be an integer within 0 and ${FD_LIMIT}`);
  }
}

/**
 * Declares a descriptor that was opened elsewhere: another VM's guest_memfd, or any other file.
 * @throws {RangeError} if `fd` is no descriptor number or is open already
 */
export function openFd(fd: number, kind: FdKind): void {
  refuseNumber(fd);
  if (kind !== 'guest_memfd' && kind !== 'other') {
    throw new RangeError(`kind is ${JSON.stringify(kind)}: it must be 'guest_memfd' or 'other'`);
  }
  if (files.has(fd)) throw new RangeError(`fd is ${fd}: that descriptor is open already`);
  files.set(fd, { kind, owner: undefined });
}

/** Forgets a descriptor; one that is not open is no error. A VM's own file is closed by GuestMemfd.close(). */
export function closeFd(fd: number): void {
  refuseNumber(fd);
  files.delete(fd);
}

/** Takes a number for a VM's new guest_memfd: `wanted`, or the lowest free one. */
export function takeFd(owner: object, wanted: number | undefined): number {
  let fd = FIRST_FD;
  if (wanted !== undefined) {
    refuseNumber(wanted);
    if (files.has(wanted)) throw new RangeError(`fd is ${wanted}: that descriptor is open already`);
    fd = wanted;
  } else {
    while (files.has(fd)) fd++;
  }
  files.set(fd, { kind: 'guest_memfd', owner });
  return fd;
}

/** Gives a restored VM the numbers that its memory names. */
export function adoptFd(owner: object, fd: number): void {
  files.set(fd, { kind: 'guest_memfd', owner });
}

/** What `fd` is to `vm`, as the engine numbers it: 0 not open, 1 something else, 2 its own guest_memfd. */
export function fdKindFor(vm: object, fd: number): 0 | 1 | 2 {
  const file = files.get(fd);
  if (file === undefined) return 0;
  return file.kind === 'guest_memfd' && file.owner === vm ? 2 : 1;
}
