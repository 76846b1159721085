// A virtual CPU: enters the guest, accesses memory, faults, accepts pages.
// Mirrors: vcpu_enter_guest() and kvm_mmu_page_fault() in arch/x86/kvm, TDG.MEM.PAGE.ACCEPT of the TDX module.

import {
  type AccessKind,
  big,
  type Fault,
  type FaultResult,
  isPageAligned,
  ModelError,
  toGfn,
  type U64,
  U64_MAX,
} from './kernel.ts';
import type { ModelVm } from './model-vm.ts';
import { pagesOf, type Root, type RootKind, roundDown } from './page-tables.ts';

export interface ModelExit {
  reason: string;
  gpa?: bigint;
  size?: bigint;
  flags?: bigint;
  isWrite?: boolean;
  errno?: string;
}

export class ModelVcpu {
  asId = 0;
  roots: Root[] = [];
  flushPending = false;
  hasRun = false;
  mmioGfn = -1;
  mmioGeneration = -1;
  private readonly pendingFaults = new Map<number, Fault>();
  private nextFault = 1;

  private readonly vm: ModelVm;
  readonly id: number;

  constructor(vm: ModelVm, id: number) {
    this.vm = vm;
    this.id = id;
  }

  rootFor(isPrivate: boolean): Root | null {
    const kind: RootKind = this.vm.isTd && isPrivate ? 'mirror' : 'direct';
    return this.roots.find((root) => root.kind === kind && root.asId === this.asId) ?? null;
  }

  private alive(): void {
    if (this.vm.isClosed) throw new ModelError('EBADF');
    if (this.vm.dead) throw new ModelError('EIO');
  }

  private dropObsolete(): void {
    const dropped = this.roots.filter((root) => !root.valid || root.asId !== this.asId);
    this.roots = this.roots.filter((root) => !dropped.includes(root));
    for (const root of dropped) this.vm.dropRoot(root);
  }
  run(): void {
    this.alive();
    this.enter();
  }
  private enter(): void {
    this.dropObsolete();
    this.vm.loadRoots(this);
    if (this.flushPending) this.vm.count('tlb_flush');
    if (!this.hasRun) this.vm.count('tlb_flush');
    this.flushPending = false;
    this.hasRun = true;
  }
  private changeSmm(asId: number): void {
    this.alive();
    if (asId >= this.vm.addressSpaces) throw new ModelError('EINVAL');
    if (this.asId === asId) return;
    this.asId = asId;
    const old = this.roots;
    this.roots = [];
    for (const root of old) this.vm.dropRoot(root);
  }
  enterSmm(): void {
    this.changeSmm(1);
  }
  leaveSmm(): void {
    this.changeSmm(0);
  }

  preFaultMemory(a: { gpa: U64; size: U64; flags?: U64 }): { gpa: bigint; size: bigint } {
    this.alive();
    let gpa = big(a.gpa);
    let size = big(a.size);
    const left = (): { gpa: bigint; size: bigint } => ({ gpa, size });
    if (big(a.flags ?? 0) !== 0n || !isPageAligned(gpa) || !isPageAligned(size)) throw new ModelError('EINVAL', left());
    if (size === 0n || gpa + size > U64_MAX) throw new ModelError('EINVAL', left());
    let done = false;
    while (size > 0n) {
      const code = this.preFaultOne(toGfn(gpa));
      if (typeof code === 'string') {
        if (!done) throw new ModelError(code, left());
        break;
      }
      done = true;
      const step = BigInt(code) * 4096n;
      gpa += step < size ? step : size;
      size -= step < size ? step : size;
    }
    return left();
  }
  /** Returns the number of pages from `gfn` to the end of what was mapped, or an errno. */
  private preFaultOne(gfn: number): number | string {
    const vm = this.vm;
    if (vm.isTd && Math.floor(gfn / vm.sharedBit) % 2 === 1) return 'EINVAL';
    this.roots = this.roots.filter((root) => root.asId === this.asId);
    vm.loadRoots(this);
    const isPrivate = vm.isPrivate(gfn);
    const fault = vm.fault(this, gfn, 'read', isPrivate, true);
    switch (fault.result) {
      case 'fixed':
      case 'spurious':
        return roundDown(gfn, fault.goalLevel) + pagesOf(fault.goalLevel) - gfn;
      case 'emulate':
        return 'ENOENT';
      case 'retry':
        // Nothing in this thread can end the invalidation or drop the root: only a signal ends the kernel's loop.
        return 'EINTR';
      default:
        return fault.errno;
    }
  }

  access(a: { gpa: U64; kind: AccessKind; private?: boolean }): ModelExit {
    this.alive();
    const vm = this.vm;
    const gpa = big(a.gpa);
    const gfn = toGfn(gpa);
    for (;;) {
      this.enter();
      const isPrivate =
        vm.type === 'default' ? false : vm.type === 'sw-protected' ? vm.isPrivate(gfn) : (a.private ?? false);
      const root = this.rootFor(isPrivate) as Root;
      const at = vm.entryAt(root, gfn);
      const entry = at.entry;
      const pageGpa = gpa - (gpa % 4096n);
      const memoryFault = (flags: bigint): ModelExit => ({
        reason: 'memory_fault',
        gpa: pageGpa,
        size: 4096n,
        flags,
        errno: 'EFAULT',
      });
      let rsvd = false;
      if (entry.kind === 'leaf') {
        const ok = a.kind === 'read' || (a.kind === 'write' ? entry.writable : entry.executable);
        if (ok) {
          if (root.kind === 'mirror') {
            if (!entry.pending) return { reason: 'done' };
            if (vm.septVeDisable) {
              vm.dead = true;
              return { reason: 'error', errno: 'EIO' };
            }
            return { reason: 've', gpa };
          }
          at.table.entries[at.index] = { ...entry, accessed: true, dirty: entry.dirty || a.kind === 'write' };
          if (entry.private && a.kind === 'write') vm.contentWritten(gfn);
          return { reason: 'done' };
        }
      } else if (entry.kind === 'mmio') {
        rsvd = true;
        const generation = vm.generations[this.asId];
        // The cache is of address space 0, whichever the vCPU is in.
        const hit = this.mmioGfn === gfn && gfn !== 0 && this.mmioGeneration === vm.generations[0];
        if (hit) return { reason: 'mmio', gpa, isWrite: a.kind === 'write' };
        if (entry.generation === generation) {
          this.mmioGfn = gfn;
          this.mmioGeneration = vm.generations[0];
          return { reason: 'mmio', gpa, isWrite: a.kind === 'write' };
        }
      }
      vm.count('pf_taken');
      const faultPrivate = rsvd && vm.type === 'sw-protected' ? false : isPrivate;
      const fault = vm.fault(this, gfn, a.kind, faultPrivate, false, rsvd);
      switch (fault.result) {
        case 'fixed':
          vm.count('pf_fixed');
          break;
        case 'spurious':
          vm.count('pf_spurious');
          break;
        case 'emulate':
          vm.count('pf_emulate');
          return { reason: 'mmio', gpa, isWrite: a.kind === 'write' };
        case 'memory_fault':
          return { ...memoryFault(faultPrivate ? 8n : 0n), errno: fault.errno };
        case 'error':
          return { reason: 'error', errno: fault.errno };
        case 'retry':
          // Nothing in this thread can end the invalidation, or thaw the entry.
          if (vm.retryGfnUnsafe(vm.seq, gfn) || vm.entryAt(root, gfn).entry.kind === 'frozen') {
            this.enter();
            return { reason: 'retry' };
          }
          break;
      }
    }
  }

  beginFault(a: { gpa: U64; kind: AccessKind; private?: boolean }): number {
    this.alive();
    this.vm.loadRoots(this);
    const gfn = toGfn(big(a.gpa));
    const isPrivate =
      this.vm.type === 'default'
        ? false
        : this.vm.type === 'sw-protected'
          ? this.vm.isPrivate(gfn)
          : (a.private ?? false);
    const fault = this.vm.faultBegin(this, gfn, a.kind, isPrivate, false);
    this.pendingFaults.set(this.nextFault, fault);
    return this.nextFault++;
  }
  finishFault(id: number): FaultResult {
    this.alive();
    const fault = this.pendingFaults.get(id);
    if (!fault) throw new ModelError('EINVAL');
    const result = this.vm.faultFinish(fault);
    if (result === 'frozen') return result;
    this.pendingFaults.delete(id);
    if (result === 'error' && this.vm.dead) throw new ModelError('EIO');
    return result;
  }

  /** TDG.MEM.PAGE.ACCEPT of every 4K page; returns the number of pages that became accepted. */
  accept(a: { gpa: U64; size: U64 }): number {
    this.alive();
    const start = toGfn(big(a.gpa));
    const end = start + toGfn(big(a.size));
    if (!this.vm.isTd || end <= start || end > this.vm.sharedBit) throw new ModelError('EINVAL');
    let pages = 0;
    this.enter();
    for (let gfn = start; gfn < end; gfn++) {
      const root = this.rootFor(true) as Root;
      let at = this.vm.entryAt(root, gfn);
      if (at.entry.kind === 'empty') {
        this.vm.count('pf_taken');
        const { result, errno } = this.vm.fault(this, gfn, 'write', true, false);
        if (result === 'memory_fault' || result === 'error') throw new ModelError(errno);
        if (result === 'retry') throw new ModelError('EINTR');
        this.vm.count('pf_fixed');
        at = this.vm.entryAt(root, gfn);
      }
      if (at.entry.kind !== 'leaf' || !at.entry.pending) continue;
      at.table.entries[at.index] = { ...at.entry, pending: false };
      this.vm.accepted.add(gfn);
      pages++;
    }
    return pages;
  }
}
