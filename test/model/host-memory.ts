// The VMM's system calls on its own memory, in bytes.

import { type Host, HostError, type RegionKind } from './host.ts';
import { big, isPageAligned, ModelError, toGfn, type U64 } from './kernel.ts';
import type { ModelVm } from './model-vm.ts';

/** The VMM's system calls, in bytes. */
export class ModelHost {
  private readonly vm: ModelVm;

  constructor(vm: ModelVm) {
    this.vm = vm;
  }
  private pages(a: { hva: U64; length: U64 }): [number, number] {
    const hva = big(a.hva);
    if (!isPageAligned(hva)) throw new ModelError('EINVAL');
    const start = toGfn(hva);
    return [start, start + Math.ceil(Number(a.length) / 4096)];
  }
  private call(body: (host: Host) => void): void {
    try {
      body(this.vm.hostModel);
    } catch (error) {
      throw error instanceof HostError ? new ModelError(error.code) : error;
    }
  }
  mmap(a: { kind: RegionKind; hva: U64; length: U64; prot?: number }): void {
    const [start, end] = this.pages(a);
    this.call((host) => host.mmap(a.kind, start, end - start, a.prot ?? 3));
  }
  munmap(a: { hva: U64; length: U64 }): void {
    const [start, end] = this.pages(a);
    this.call((host) => host.munmap(start, end));
  }
  mprotect(a: { hva: U64; length: U64; prot: number }): void {
    const [start, end] = this.pages(a);
    this.call((host) => host.mprotect(start, end, a.prot));
  }
  mremap(a: { old: U64; length: U64; new: U64 }): void {
    const [start, end] = this.pages({ hva: a.old, length: a.length });
    this.call((host) => host.mremap(start, end - start, toGfn(big(a.new))));
  }
  madvise(a: { hva: U64; length: U64; advice: string }): void {
    const [start, end] = this.pages(a);
    if (start === end) return;
    this.call((host) => {
      if (a.advice === 'DONTNEED') host.dontneed(start, end);
      else if (a.advice === 'POPULATE_WRITE') host.populate(start, end, true);
      else if (a.advice === 'POPULATE_READ') host.populate(start, end, false);
      else if (a.advice === 'REMOVE') host.remove(start, end);
      else if (a.advice === 'FREE') host.free(start, end);
      else if (a.advice === 'PAGEOUT') host.pageout(start, end);
      else if (a.advice === 'HUGEPAGE') host.hugepage(start, end);
      else if (a.advice === 'COLLAPSE') host.collapse(start, end);
      else if (a.advice !== 'COLD' && a.advice !== 'MERGEABLE') throw new HostError('EINVAL');
    });
  }
  access(a: { hva: U64; length: U64; write: boolean; step?: number }): void {
    const [start, end] = this.pages(a);
    this.call((host) => host.access(start, end, a.write, Math.max(1, Math.floor((a.step ?? 4096) / 4096))));
  }
  migrate(a: { hva: U64; length: U64 }): void {
    const [start, end] = this.pages(a);
    this.call((host) => host.migrate(start, end));
  }
  khugepaged(a: { hva: U64; length: U64 }): void {
    const [start, end] = this.pages(a);
    this.call((host) => host.khugepaged(start, end));
  }
  pageIdleSet(a: { hva: U64; pages: number }): void {
    this.call((host) => host.pageIdleSet(toGfn(big(a.hva)), a.pages));
  }
  pageIdleRead(a: { hva: U64; pages: number }): void {
    this.call((host) => host.pageIdleRead(toGfn(big(a.hva)), a.pages));
  }
  age(a: { hva: U64; length: U64 }): boolean {
    const [start, end] = this.pages(a);
    return this.vm.hvaAge(start, end);
  }
  testAge(a: { hva: U64 }): boolean {
    return this.vm.hvaTestAge(toGfn(big(a.hva)));
  }
  invalidateRangeStart(a: { hva: U64; length: U64; blockable?: boolean }): void {
    const [start, end] = this.pages(a);
    this.vm.invalidateStart(start, end, a.blockable ?? true);
  }
  invalidateRangeEnd(a: { hva: U64; length: U64 }): void {
    const [start, end] = this.pages(a);
    this.vm.invalidateEnd(start, end);
  }
}
