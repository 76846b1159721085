// A guest_memfd file of one VM.

import { integer, object, type U64 } from './errors.ts';
import type { RmpEntry } from './snp.ts';
import type { Vm } from './vm.ts';

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;

export class GuestMemfd {
  readonly #vm: Vm;
  /** The descriptor's number, unique in the process. */
  readonly fd: number;
  /** Bytes; fixed when the file was made. */
  readonly size: bigint;

  /** Tells this file from a later one with the same number. */
  readonly #serial: number;

  /** Made by Vm.createGuestMemfd(). */
  constructor(vm: Vm, fd: number, serial: number, size: bigint) {
    this.#vm = vm;
    this.#serial = serial;
    this.fd = fd;
    this.size = size;
  }

  /**
   * fallocate(2): `mode` is KEEP_SIZE (1), with PUNCH_HOLE (2) to free; `offset` and `length` in bytes.
   * @throws {KvmError} EINVAL (misaligned, length 0, allocation beyond the size), EOPNOTSUPP (another mode), EBADF (closed)
   */
  fallocate(args: { mode: number; offset: U64; length: U64 }): void {
    object(args, 'args');
    const mode = integer(args.mode, 'mode', 0, 2 ** 32 - 1);
    this.#vm.gmemFallocate(this.fd, this.#serial, mode, args.offset, args.length);
  }

  /** Frees [offset, offset + length) bytes, zapping what maps them. Errors as fallocate(). */
  punchHole(offset: U64, length: U64): void {
    this.fallocate({ mode: FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length });
  }

  /** Allocates the pages of [offset, offset + length) bytes. Errors as fallocate(). */
  allocate(offset: U64, length: U64): void {
    this.fallocate({ mode: FALLOC_FL_KEEP_SIZE, offset, length });
  }

  /**
   * A memory error in page `pageIndex` of the file: zapped, not freed; later faults fail with EHWPOISON.
   * @throws {KvmError} EINVAL beyond the file
   */
  memoryError(pageIndex: number): void {
    this.#vm.gmemMemoryError(this.fd, this.#serial, integer(pageIndex, 'pageIndex', 0, 2 ** 52));
  }

  /**
   * KVM_SET_MEMORY_ATTRIBUTES2 on the file: makes [offset, offset + size) bytes private (8) or shared (0), in place. Only
   * under filterForm 'gmem-in-place'.
   * @throws {KvmError} ENOTTY (another form); EINVAL (flags, unknown attributes, size 0, misaligned, beyond the file);
   *   EAGAIN to private, if a folio has an elevated refcount: its place is `errorOffset`
   */
  setMemoryAttributes(args: { offset: U64; size: U64; attributes: U64; flags?: U64 }): void {
    object(args, 'args');
    this.#vm.gmemSetAttributes(this.fd, this.#serial, args);
  }

  /**
   * The VMM touches [offset, offset + length) bytes through its mapping of the file.
   * @throws {KvmError} ENODEV (not created with flag MMAP); EFAULT where a SIGBUS comes: beyond the file, a private or a
   *   poisoned page
   */
  hostAccess(args: { offset: U64; length: U64 }): void {
    object(args, 'args');
    this.#vm.gmemHostAccess(this.fd, this.#serial, args.offset, args.length);
  }

  /**
   * Someone else takes a reference of page `pageIndex`'s folio. Not counted: one drop ends any number of them.
   * @throws {KvmError} EINVAL beyond the file; ENOENT: not allocated
   */
  elevateRefcount(pageIndex: number): void {
    this.#vm.gmemPin(this.fd, this.#serial, integer(pageIndex, 'pageIndex', 0, 2 ** 52 - 1), true);
  }
  /** … and drops it. Errors as elevateRefcount(). */
  dropRefcount(pageIndex: number): void {
    this.#vm.gmemPin(this.fd, this.#serial, integer(pageIndex, 'pageIndex', 0, 2 ** 52 - 1), false);
  }

  /**
   * The RMP entry of page `pageIndex` of the file, on an SNP VM.
   * @throws {KvmError} EINVAL beyond the file or on another VM; EBADF (closed)
   */
  rmp(pageIndex: number): RmpEntry {
    return this.#vm.gmemRmp(this.fd, this.#serial, integer(pageIndex, 'pageIndex', 0, 2 ** 52 - 1));
  }

  /** Closes the last reference: zaps every slot bound to it, frees its pages, and ends a VM that only it held. */
  close(): void {
    this.#vm.gmemClose(this.fd, this.#serial);
  }
}
