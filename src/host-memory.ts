// The VMM process's address space. Each call does what Linux does, and fires the notifier as it does.

import { GATE_HOST } from './engine/exports.ts';
import { boolean, check, halvesOf, integer, object, oneOf, type U64 } from './errors.ts';
import type { Vm } from './vm.ts';

export const HOST_KINDS = ['anon4k', 'thp', 'hugetlb2m', 'hugetlb1g', 'shmem', 'anon'] as const;
/** anon: anonymous memory; anon4k: with MADV_NOHUGEPAGE; thp: with MADV_HUGEPAGE; shmem: a shared memfd. */
export type HostKind = (typeof HOST_KINDS)[number];

/** madvise(2) numbers by name. */
const ADVICE = {
  DONTNEED: 4,
  FREE: 8,
  REMOVE: 9,
  MERGEABLE: 12,
  UNMERGEABLE: 13,
  HUGEPAGE: 14,
  NOHUGEPAGE: 15,
  COLD: 20,
  PAGEOUT: 21,
  POPULATE_READ: 22,
  POPULATE_WRITE: 23,
  COLLAPSE: 25,
} as const;
export type Advice = keyof typeof ADVICE;
const COLLAPSE_SUCCEEDS = 256;
const COLLAPSE_FAILS = 512;

/** Bytes [hva, hva + length). */
export interface HvaRange {
  hva: U64;
  length: U64;
}

const PROT_READ_WRITE = 3;

export class HostMemory {
  readonly #vm: Vm;

  /** Made with the VM. */
  constructor(vm: Vm) {
    this.#vm = vm;
  }

  #call(
    name: Parameters<Vm['operate']>[0],
    method: string,
    values: readonly number[],
    shown: Readonly<Record<string, unknown>>,
  ): void {
    this.#ask(name, method, values, shown, () => undefined);
  }

  /** As #call(), for a call with a result. */
  #ask<T>(
    name: Parameters<Vm['operate']>[0],
    method: string,
    values: readonly number[],
    shown: Readonly<Record<string, unknown>>,
    finish: (status: number) => T,
  ): T {
    return this.#vm.operate(name, values, GATE_HOST, (status) => finish(check(status, method, shown)), method);
  }

  #range(args: HvaRange): number[] {
    object(args, 'args');
    return [...halvesOf(args.hva, 'hva'), ...halvesOf(args.length, 'length')];
  }

  /**
   * mmap(2) at a fixed address (what is mapped there goes first). `prot`: READ 1, WRITE 2, EXEC 4; default 3.
   * @throws {KvmError} EINVAL misaligned or empty, ENOMEM beyond the address space
   */
  mmap(args: HvaRange & { kind: HostKind; prot?: number }): void {
    const range = this.#range(args);
    const kind = HOST_KINDS.indexOf(oneOf(args.kind, 'kind', HOST_KINDS));
    const prot = integer(args.prot ?? PROT_READ_WRITE, 'prot', 0, 7);
    this.#call('abiHostMmap', 'mmap', [kind, ...range, prot], { ...args });
  }

  /** munmap(2). @throws {KvmError} EINVAL */
  munmap(args: HvaRange): void {
    this.#call('abiHostMunmap', 'munmap', this.#range(args), { ...args });
  }

  /** mprotect(2). @throws {KvmError} EINVAL, ENOMEM (a hole) */
  mprotect(args: HvaRange & { prot: number }): void {
    const range = this.#range(args);
    this.#call('abiHostMprotect', 'mprotect', [...range, integer(args.prot, 'prot', 0, 7)], { ...args });
  }

  /**
   * madvise(2). `succeeds` decides a COLLAPSE whose success the host's state leaves open.
   * @throws {KvmError} EINVAL (misaligned, not for this kind), ENOMEM (a hole, after the rest was done)
   */
  madvise(args: HvaRange & { advice: Advice; succeeds?: boolean }): void {
    const range = this.#range(args);
    const advice = ADVICE[oneOf(args.advice, 'advice', Object.keys(ADVICE) as Advice[])];
    let forced = 0;
    if (args.succeeds !== undefined) forced = boolean(args.succeeds, 'succeeds') ? COLLAPSE_SUCCEEDS : COLLAPSE_FAILS;
    this.#call('abiHostMadvise', 'madvise', [...range, advice | forced], { ...args });
  }

  /** mremap(2) of [old, old + length) to `new`. @throws {KvmError} EINVAL, EFAULT */
  mremap(args: { old: U64; length: U64; new: U64 }): void {
    object(args, 'args');
    const values = [...halvesOf(args.old, 'old'), ...halvesOf(args.length, 'length'), ...halvesOf(args.new, 'new')];
    this.#call('abiHostMremap', 'mremap', values, { ...args });
  }

  /** The VMM touches its memory, every `step` bytes (default 4096). @throws {KvmError} EFAULT */
  access(args: HvaRange & { write: boolean; step?: number }): void {
    const range = this.#range(args);
    const step = integer(args.step ?? 4096, 'step', 1, 2 ** 48);
    const write = boolean(args.write, 'write') ? 1 : 0;
    this.#call('abiHostAccess', 'access', [...range, write, step], { ...args });
  }

  /** The kernel moves pages to other frames (compaction, NUMA balancing). */
  migrate(args: HvaRange): void {
    this.#call('abiHostMigrate', 'migrate', this.#range(args), { ...args });
  }

  /** khugepaged collapses each aligned 2M of the range: an input, its timing is the host's. */
  khugepaged(args: HvaRange): void {
    this.#call('abiHostKhugepaged', 'khugepaged', this.#range(args), { ...args });
  }

  /** KSM merges the pages of the range with others: an input. */
  ksm(args: HvaRange): void {
    this.#call('abiHostKsmMerge', 'ksm', this.#range(args), { ...args });
  }

  /** The next population of these 2M regions finds no huge page: an input. */
  failHugePage(args: HvaRange): void {
    this.#call('abiHostFailHugePage', 'failHugePage', this.#range(args), { ...args });
  }

  /**
   * Before 6.10: KSM or COW replaced a host pte in place.
   * @throws {KvmError} EFAULT if nothing is mapped, EOPNOTSUPP under the linux profiles, which have no change_pte
   */
  changePte(args: { hva: U64; writable: boolean }): void {
    object(args, 'args');
    const values = [...halvesOf(args.hva, 'hva'), boolean(args.writable, 'writable') ? 1 : 0];
    this.#call('abiHostChangePte', 'changePte', values, { ...args });
  }

  /** Writes the page_idle bitmap for `pages` pages from `hva`. @returns how many it took */
  pageIdleSet(args: { hva: U64; pages: number }): number {
    object(args, 'args');
    const pages = integer(args.pages, 'pages', 0, 2 ** 31 - 1);
    return this.#ask(
      'abiHostPageIdleSet',
      'pageIdleSet',
      [...halvesOf(args.hva, 'hva'), pages],
      { ...args },
      (status) => status,
    );
  }

  /** Writes /proc/PID/clear_refs: 1 tells KVM nothing, 4 (soft-dirty) unmaps everything. */
  clearRefs(kind: number): void {
    this.#call('abiHostClearRefs', 'clearRefs', [integer(kind, 'kind', 1, 5)], { kind });
  }

  // --- The notifier, called bare -----------------------------------------------------------------------------------

  #bounds(args: HvaRange): number[] {
    object(args, 'args');
    const [startLow, startHigh] = halvesOf(args.hva, 'hva');
    const length = halvesOf(args.length, 'length');
    const end =
      (BigInt(startLow) + (BigInt(startHigh) << 32n) + BigInt(length[0]) + (BigInt(length[1]) << 32n)) % 2n ** 64n;
    return [startLow, startHigh, Number(end & 0xffffffffn), Number(end >> 32n)];
  }

  /**
   * kvm_mmu_notifier_invalidate_range_start(): zaps what maps the range and holds faults off until its end.
   * @returns whether a memslot was met
   */
  invalidateRangeStart(args: HvaRange & { blockable?: boolean }): boolean {
    const values = [...this.#bounds(args), boolean(args.blockable ?? true, 'blockable') ? 1 : 0];
    return this.#ask('abiInvalidateRangeStart', 'invalidateRangeStart', values, { ...args }, (status) => status === 1);
  }
  /** kvm_mmu_notifier_invalidate_range_end(). @throws {KvmError} EINVAL if no start is open */
  invalidateRangeEnd(args: HvaRange): void {
    this.#call('abiInvalidateRangeEnd', 'invalidateRangeEnd', this.#bounds(args), { ...args });
  }
  /** kvm_mmu_notifier_clear_young(), or clear_flush_young() with `flush`. @returns whether any page was young */
  age(args: HvaRange & { flush?: boolean }): boolean {
    const values = [...this.#bounds(args), boolean(args.flush ?? false, 'flush') ? 1 : 0];
    return this.#ask('abiNotifierAge', 'age', values, { ...args }, (status) => status === 1);
  }
  /** kvm_mmu_notifier_test_young() of one address. */
  testAge(args: { hva: U64 }): boolean {
    object(args, 'args');
    return this.#ask('abiNotifierTestAge', 'testAge', halvesOf(args.hva, 'hva'), { ...args }, (status) => status === 1);
  }
}
