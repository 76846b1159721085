// Checks the unit vectors: a struct kvm_gfn_range in, the ordered changes and the return value out.
//
// The leafs a vector starts from are made through the public API: one memslot around them, host memory of the kind that
// gives each its level and permission, and a pre-fault or a guest access on it. One VM per type serves all vectors of a file;
// each vector gets memslot and host memory of its own, which go before the next.

import { createVmSync, type Vm } from '../../index.ts';
import { type TracedEvent, type TracedMeaning, toMeaning } from './compare.ts';
import type { HostInputs } from './host-inputs.ts';
import type { GfnRangeVector } from './reader.ts';
import type { EngineOptions } from './replay.ts';
import { ACCESSED, CLASS_MASK, LEAF, NONPRESENT } from './unfold.ts';

const SLOT_HVA = 0x100000000000n;
const PAGES_1G = 512 * 512;
const PAGE = 4096n;
const FLAG_WRITABLE = 0x2;
const FLAG_ACCESSED = 0x20;

export interface VectorDifference {
  readonly field: string;
  readonly expected: string;
  readonly actual: string;
}

type Run = readonly [level: number, gfn: number, count: number];

function pagesOf(level: number): number {
  return 512 ** (level - 1);
}

/** The memslot of a vector: whole 1G areas around its range and its leafs, host memory congruent to it. */
interface Area {
  readonly startGfn: number;
  readonly endGfn: number;
}

function areaOf(vector: GfnRangeVector): Area {
  let start = vector.start;
  let end = Math.max(vector.end, vector.start + 1);
  for (const [level, gfn, count] of vector.before) {
    start = Math.min(start, gfn);
    end = Math.max(end, gfn + count * pagesOf(level));
  }
  return {
    startGfn: Math.floor(start / PAGES_1G) * PAGES_1G,
    endGfn: Math.ceil(end / PAGES_1G) * PAGES_1G,
  };
}

/** Checks vectors against VMs it keeps, one per VM type. */
export class VectorCheck {
  private readonly vms = new Map<number, Vm>();
  private readonly inputs: HostInputs;
  private readonly engine: EngineOptions;
  private readonly memory: bigint;

  constructor(vectors: readonly GfnRangeVector[], inputs: HostInputs, engine: EngineOptions = {}) {
    this.inputs = inputs;
    this.engine = engine;
    let pages = 0;
    for (const vector of vectors) {
      const area = areaOf(vector);
      pages = Math.max(pages, area.endGfn - area.startGfn);
    }
    this.memory = BigInt(pages) * PAGE;
  }

  /** Makes one vector's leafs, makes its call, and compares. */
  check(vector: GfnRangeVector): VectorDifference[] {
    const vm = this.vmOf(vector.vmType);
    const area = areaOf(vector);
    const slot = ((vector.asId << 16) | vector.slot) >>> 0;
    const region = {
      slot,
      flags: 0,
      guestPhysAddr: BigInt(area.startGfn) * PAGE,
      memorySize: BigInt(area.endGfn - area.startGfn) * PAGE,
      userspaceAddr: SLOT_HVA,
    };
    vm.setUserMemoryRegion(region);
    const vcpu = vm.vcpus[0];
    if (vector.asId === 1) vcpu.enterSmm();
    try {
      this.makeLeafs(vm, vector, area);
      vm.trace();
      const range = {
        slot: vector.slot,
        asId: vector.asId,
        start: vector.start,
        end: vector.end,
        arg: { attributes: vector.arg },
        mayBlock: vector.mayBlock !== 0,
        attrFilter: vector.attrFilter,
      };
      const ret =
        vector.fn === 'unmap_gfn_range'
          ? vm.unmapGfnRange(range)
          : vector.fn === 'age_gfn'
            ? vm.ageGfn(range)
            : vm.testAgeGfn(range);
      return compareVector(vector, vm.trace() as readonly TracedEvent[], ret);
    } finally {
      if (vector.asId === 1) vcpu.leaveSmm();
      vm.host.munmap({ hva: SLOT_HVA, length: region.memorySize });
      vm.setUserMemoryRegion({ ...region, memorySize: 0n });
      vm.trace();
    }
  }

  private vmOf(type: number): Vm {
    let vm = this.vms.get(type);
    if (vm === undefined) {
      vm = createVmSync({
        ...this.engine,
        type: type === 1 ? 'sw-protected' : 'default',
        kernel: 'linux-6.12',
        memory: this.memory,
        maxphyaddr: 40,
        traceRecords: 1 << 18,
      });
      this.vms.set(type, vm);
    }
    return vm;
  }

  private makeLeafs(vm: Vm, vector: GfnRangeVector, area: Area): void {
    const vcpu = vm.vcpus[0];
    const hvaOf = (gfn: number) => SLOT_HVA + BigInt(gfn - area.startGfn) * PAGE;
    // The root is loaded and the obsolete one of the vector before is dropped.
    vcpu.run();
    // An age call clears the hardware's Accessed bit, which the vector's list was read without: its return says it was set.
    const wasAccessed = vector.fn === 'age_gfn' && vector.ret === 1;
    for (const [level, gfn, count, flags] of vector.before) {
      const bits = Number.parseInt(flags.slice(-3), 16);
      const hva = hvaOf(gfn);
      const length = BigInt(count * pagesOf(level)) * PAGE;
      const isWritable = (bits & FLAG_WRITABLE) !== 0;
      vm.host.mmap({ kind: level === 1 ? 'anon4k' : level === 2 ? 'hugetlb2m' : 'hugetlb1g', hva, length, prot: 3 });
      if (isWritable) vm.host.madvise({ hva, length, advice: 'POPULATE_WRITE' });
      const isListed = (bits & FLAG_ACCESSED) !== 0;
      if (isListed || (wasAccessed && this.inputs.take('accessed-bit'))) {
        for (let k = 0; k < count; k++) {
          vcpu.access({ gpa: BigInt(gfn + k * pagesOf(level)) * PAGE, kind: isWritable ? 'write' : 'read' });
        }
      } else {
        vcpu.preFaultMemory({ gpa: BigInt(gfn) * PAGE, size: length });
      }
    }
  }
}

/** What a recording's flags and the engine's leafs must agree on lies in the changes: level, gfn, and that the leaf is gone or aged. */
function compareVector(vector: GfnRangeVector, trace: readonly TracedEvent[], ret: boolean): VectorDifference[] {
  const differences: VectorDifference[] = [];
  const isAge = vector.fn !== 'unmap_gfn_range';
  const actual: [number, number, number][] = [];
  for (const event of trace) {
    if (event.name !== 'spte_changed') continue;
    const change = event as TracedEvent & {
      asId: number;
      gfn: number;
      level: number;
      count: number;
      old: TracedMeaning;
      new: TracedMeaning;
    };
    const was = toMeaning(change.old);
    const is = toMeaning(change.new);
    const isRight =
      change.asId === vector.asId &&
      (was & CLASS_MASK) === LEAF &&
      (isAge ? is === (was & ~ACCESSED) && is !== was : is === NONPRESENT);
    if (!isRight) {
      differences.push({
        field: 'changed.kind',
        expected: isAge ? 'a leaf loses its Accessed bit' : 'a leaf becomes non-present',
        actual: `as ${change.asId} gfn ${change.gfn} level ${change.level}: ${change.old.class} -> ${change.new.class}`,
      });
    }
    pushRun(actual, [change.level, change.gfn, change.count]);
  }
  const expected: [number, number, number][] = [];
  for (const run of vector.changed) pushRun(expected, run);
  const want = JSON.stringify(expected);
  const got = JSON.stringify(actual);
  if (want !== got) differences.push({ field: 'changed', expected: want, actual: got });
  const returned = ret ? 1 : 0;
  if (!isAge && returned !== vector.ret) {
    differences.push({ field: 'ret', expected: String(vector.ret), actual: String(returned) });
  }
  return differences;
}

/** Adds a run in order, joined to the last where it goes on from it. */
function pushRun(runs: [number, number, number][], [level, gfn, count]: Run): void {
  const last = runs.at(-1);
  if (last !== undefined && last[0] === level && last[1] + last[2] * pagesOf(level) === gfn) last[2] += count;
  else runs.push([level, gfn, count]);
}
