// The engine, through its public API and all of its checks.

import { pathToFileURL } from 'node:url';
import type { GfnRangesResult, KvmGfnRanges, Vm } from '../../src/index.ts';
import { type Guest, LEAVES, leafLevelAt, PAGE, pagesOf, rangeStarts, SEED, stateOf } from '../workloads.ts';
import { type Contender, now, type Outcome, type Walk } from './contender.ts';

/** The API as it is shipped. */
export const api: typeof import('../../src/index.ts') = await import(pathToFileURL('dist/index.js').href);

const HVA = 2 ** 40;
const TOUCH = { hva: HVA, length: 0, write: true };

/** A VM with one memslot over the whole guest, all of its host memory touched, nothing mapped by KVM. */
export function vmOf(guest: Guest): Vm {
  const vm = api.createVmSync({ memory: guest.bytes });
  const half = guest.bytes / 2;
  if (guest.leaves !== '4k') {
    vm.host.mmap({ hva: HVA, length: guest.leaves === '2m' ? guest.bytes : half, kind: 'hugetlb2m' });
  }
  if (guest.leaves === '4k') vm.host.mmap({ hva: HVA, length: guest.bytes, kind: 'shmem' });
  if (guest.leaves === 'mixed') vm.host.mmap({ hva: HVA + half, length: half, kind: 'shmem' });
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: guest.bytes, userspaceAddr: HVA });
  vm.host.access({ ...TOUCH, length: guest.bytes });
  return vm;
}

/** Maps [0, bytes) and lets the guest write all of it: a pre-fault takes runs where an access faults page by page. */
export function mapAll(vm: Vm, bytes: number): void {
  const { size } = vm.vcpus[0].preFaultMemory({ gpa: 0, size: bytes });
  if (size !== 0n) throw new Error(`${size} bytes were not mapped`);
  vm.vcpus[0].access({ gpa: 0, kind: 'write', size: bytes });
}

/** Lets the guest touch every page of the workload. */
export function fillVm(vm: Vm, guest: Guest): void {
  const vcpu = vm.vcpus[0];
  if (guest.density === 'full') {
    mapAll(vm, guest.bytes);
    return;
  }
  // First those that shall be old, then all are aged, then those that shall be young: KVM maps writable pages dirty.
  for (const wanted of [5, 7]) {
    for (let gfn = 0; gfn < pagesOf(guest); ) {
      const level = leafLevelAt(guest, gfn);
      const state = stateOf(level === 2 ? gfn / 512 : gfn, guest.density, SEED);
      if (state === wanted) vcpu.access({ gpa: gfn * PAGE, kind: 'write' });
      gfn += level === 2 ? 512 : 1;
    }
    if (wanted === 5) vm.ageGfn({ slot: 0, start: 0, end: pagesOf(guest) });
  }
}

/**
 * Zaps [0, bytes), in whatever slots it is, as Eptsim.whole() does a guest of one: the clock stops when the count and the
 * sptes of `gfns` are read. `zapNs` is the time until the count was.
 */
export function zapWhole(vm: Vm, bytes: number, gfns: Float64Array): Outcome & { zapNs: number } {
  const before = leafsZapped(vm);
  const start = now();
  vm.zapGfnRange(0, bytes / PAGE);
  const leafs = leafsZapped(vm) - before;
  const zapNs = now() - start;
  const looked = sumOf(vm.sptes(gfns));
  return { ns: now() - start, zapNs, leafs, looked };
}
const leafsZapped = (vm: Vm): number => vm.stat('leafs_zapped_direct_4k') + vm.stat('leafs_zapped_direct_2m');

let isWarm = false;
/**
 * Calls what is timed until V8 has optimised it: its first code for WebAssembly is several times slower, and a whole
 * guest is zapped in so few calls that a bench would time that. The compiled code belongs to the module, so a small guest
 * does for all.
 */
export function warmUp(): void {
  if (isWarm) return;
  isWarm = true;
  const guest: Guest = { bytes: 2 ** 31, density: 'half', leaves: '4k' };
  const vm = vmOf(guest);
  fillVm(vm, guest);
  const snapshot = vm.snapshot();
  const gfns = Float64Array.from({ length: 1000 }, (_, index) => index * 500);
  const range = { slot: 0, start: 0, end: 0 };
  for (let round = 0; round < 100; round++) {
    vm.restore(snapshot);
    for (const npages of [1, 16, 512, 262144]) {
      for (let start = 0; start + npages <= pagesOf(guest); start += Math.max(npages, 700)) {
        range.start = start;
        range.end = start + npages;
        vm.ageGfn(range);
        vm.unmapGfnRange(range);
        vm.spte(start);
      }
      const starts = Float64Array.from(
        rangeStarts(guest, npages, Math.min(1000, pagesOf(guest) / npages), 'random', round),
      );
      vm.restore(snapshot);
      for (const { leafs, sptes } of [
        vm.ageGfnRanges({ slot: 0, starts, npages, look: starts }),
        vm.unmapGfnRanges({ slot: 0, starts, npages, look: starts }),
      ]) {
        totalsOf(leafs, sptes);
      }
    }
    vm.restore(snapshot);
    vm.ageGfn({ slot: 0, start: 0, end: pagesOf(guest) });
    sumOf(vm.sptes(gfns));
    vm.unmapGfnRange({ slot: 0, start: 0, end: pagesOf(guest) });
    sumOf(vm.sptes(gfns));
  }
}

/** An spte's code (Vm.sptes()) as the other contenders show it: present, accessed, dirty and writable are bits 2, 4, 5 and 3. */
function shown(code: number): number {
  return (code & 7) === 4 ? 1 | (((code >> 4) & 3) << 1) | (((~code >> 3) & 1) << 3) : 0;
}

/** The codes of seeded gfns, each weighed by its place, as every contender sums them. */
function sumOf(codes: Uint32Array): number {
  let looked = 0;
  for (let at = 0; at < codes.length; at++) looked += shown(codes[at]) * (at + 1);
  return looked;
}

/** What many ranges changed, and the states of the sptes read after each. */
function totalsOf(leafs: Float64Array, sptes: Uint32Array): { leafs: number; looked: number } {
  let changed = 0;
  let looked = 0;
  for (let at = 0; at < leafs.length; at++) {
    changed += leafs[at];
    looked += shown(sptes[at]);
  }
  return { leafs: changed, looked };
}

/** Many ranges in one call, as native's are one command; whole guests in one call each. */
export class Eptsim implements Contender {
  readonly name: string = 'eptsim';
  #vm: Vm | undefined;
  #guest: Guest | undefined;
  #snapshot: Uint8Array | undefined;
  protected gfns: Uint32Array = new Uint32Array();
  #doubles = new Float64Array();
  #into = { leafs: new Float64Array(), sptes: new Uint32Array() };

  takes(guest: Guest, walk: Walk, _npages: number): boolean {
    return (walk === 'zap' || walk === 'age') && LEAVES[guest.leaves] > 0;
  }
  async build(guest: Guest): Promise<void> {
    warmUp();
    this.#guest = guest;
    this.#vm = this.make(guest);
    this.#snapshot = this.#vm.snapshot();
  }
  /** The VM as each round finds it. */
  protected make(guest: Guest): Vm {
    const vm = vmOf(guest);
    fillVm(vm, guest);
    return vm;
  }
  /** Leaves that `walk` has changed so far. */
  protected changed(walk: Walk): number {
    const { vm } = this;
    if (walk !== 'zap') return vm.stat('leafs_aged');
    return leafsZapped(vm);
  }
  protected doWhole(walk: Walk, guest: Guest): void {
    const whole = { slot: 0, start: 0, end: pagesOf(guest) };
    if (walk === 'zap') this.vm.unmapGfnRange(whole);
    else this.vm.ageGfn(whole);
  }
  protected doRanges(walk: Walk, ranges: KvmGfnRanges): GfnRangesResult {
    return walk === 'zap' ? this.vm.unmapGfnRanges(ranges) : this.vm.ageGfnRanges(ranges);
  }
  async fill(): Promise<void> {
    this.vm.restore(this.#snapshot!);
  }
  async use(gfns: Uint32Array): Promise<void> {
    this.gfns = gfns;
    this.#doubles = Float64Array.from(gfns);
  }
  #sum(): number {
    return sumOf(this.vm.sptes(this.#doubles));
  }
  async whole(walk: Walk): Promise<Outcome> {
    const before = this.changed(walk);
    const start = now();
    this.doWhole(walk, this.#guest!);
    const leafs = this.changed(walk) - before;
    const looked = this.#sum();
    return { ns: now() - start, leafs, looked };
  }
  async ranges(walk: Walk, npages: number): Promise<Outcome> {
    const starts = this.#doubles;
    // Like the starts, the gfns to look at and the memory for answers are there before the clock starts.
    const look = starts.map((start, at) => start + (at & (npages - 1)));
    if (this.#into.leafs.length !== starts.length) {
      this.#into = { leafs: new Float64Array(starts.length).fill(1), sptes: new Uint32Array(starts.length).fill(1) };
    }
    const ranges = { slot: 0, starts, npages, look, into: this.#into };
    const begun = now();
    const { leafs, sptes } = this.doRanges(walk, ranges);
    const found = totalsOf(leafs, sptes);
    return { ns: now() - begun, ...found };
  }
  async look(): Promise<number> {
    return this.#sum();
  }
  protected get vm(): Vm {
    if (this.#vm === undefined) throw new Error(`${this.name}: build() comes first`);
    return this.#vm;
  }
  async close(): Promise<void> {
    this.#vm = undefined;
    this.#snapshot = undefined;
  }
}

/** The same ranges call by call, as a program that has one range at a time must: what the boundary costs. */
export class EptsimByCall extends Eptsim {
  override readonly name = 'eptsim, call by call';

  override takes(guest: Guest, walk: Walk, npages: number): boolean {
    return npages !== 0 && super.takes(guest, walk, npages);
  }
  override async ranges(walk: Walk, npages: number): Promise<Outcome> {
    const { vm } = this;
    const gfns = this.gfns;
    const zap = walk === 'zap';
    let before = this.changed(walk);
    let leafs = 0;
    let looked = 0;
    const begun = now();
    for (let at = 0; at < gfns.length; at++) {
      const start = gfns[at];
      if (zap) vm.unmapGfnRange({ slot: 0, start, end: start + npages });
      else vm.ageGfn({ slot: 0, start, end: start + npages });
      const after = this.changed(walk);
      leafs += after - before;
      before = after;
      const spte = vm.spte(start + (at & (npages - 1)));
      if (spte.class === 'leaf') {
        looked += 1 + (spte.accessed ? 2 : 0) + (spte.dirty ? 4 : 0) + (spte.writable ? 0 : 8);
      }
    }
    return { ns: now() - begun, leafs, looked };
  }
}
