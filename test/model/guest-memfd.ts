// The guest_memfd file handle. Mirrors: kvm_gmem_fallocate(), kvm_gmem_release(), virt/kvm/guest_memfd.c

import { big, isPageAligned, ModelError, toGfn, type U64 } from './kernel.ts';
import type { GmemFile } from './memslot.ts';
import type { ModelVm } from './model-vm.ts';

export class ModelGuestMemfd {
  private readonly vm: ModelVm;
  readonly file: GmemFile;

  constructor(vm: ModelVm, file: GmemFile) {
    this.vm = vm;
    this.file = file;
  }
  get fd(): number {
    return this.file.fd;
  }
  get size(): bigint {
    return BigInt(this.file.npages) * 4096n;
  }
  fallocate(a: { mode: number; offset: U64; length: U64 }): void {
    if (!this.file.isOpen) throw new ModelError('EBADF');
    const offset = big(a.offset);
    const length = big(a.length);
    if (offset >= 1n << 63n || length >= 1n << 63n || length === 0n) throw new ModelError('EINVAL');
    if (!(a.mode & 1) || (a.mode & ~3) !== 0) throw new ModelError('EOPNOTSUPP');
    if (offset + length >= 1n << 63n) throw new ModelError('EFBIG');
    if (!isPageAligned(offset) || !isPageAligned(length)) throw new ModelError('EINVAL');
    const start = toGfn(offset);
    const end = toGfn(offset + length);
    if (a.mode & 2) {
      this.vm.gmemInvalidate(this.file, start, end, () => this.vm.gmemFree(this.file, start, end));
      return;
    }
    if (end > this.file.npages) throw new ModelError('EINVAL');
    for (let index = start; index < end; index++) this.vm.gmemPage(this.file, index);
  }
  punchHole(offset: U64, length: U64): void {
    this.fallocate({ mode: 3, offset, length });
  }
  allocate(offset: U64, length: U64): void {
    this.fallocate({ mode: 1, offset, length });
  }
  memoryError(index: number): void {
    if (!this.file.isOpen) throw new ModelError('EBADF');
    if (index >= this.file.npages) throw new ModelError('EINVAL');
    this.vm.gmemInvalidate(this.file, index, index + 1, () => {
      this.vm.gmemPage(this.file, index);
      this.file.poisoned.add(index);
    });
  }
  close(): void {
    if (!this.file.isOpen) throw new ModelError('EBADF');
    this.file.isOpen = false;
    this.vm.gmemInvalidate(this.file, 0, 2 ** 64, () => undefined);
    this.vm.gmemFree(this.file, 0, Number.POSITIVE_INFINITY);
    for (const slot of [...this.file.slots]) this.file.slots.splice(this.file.slots.indexOf(slot), 1);
    this.vm.gmemClosed();
  }
}
