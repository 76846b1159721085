// What does each way to change a guest's memory cost, end to end through the API, and what does its work on page tables cost
// in C?
//
// A door does more than the peers' walks of page tables: notifiers, files, attributes, the Secure-EPT of a TD. Where page
// tables are not what is worked on it stands alone. How a row is taken is measure.ts's.

import type { GfnRangesResult, GuestMemfd, KvmGfnRanges, Vm } from '../src/index.ts';
import { measure } from './measure.ts';
import { type Contender, now, type Outcome, type Walk } from './peers/contender.ts';
import { api, Eptsim, fillVm, mapAll } from './peers/eptsim.ts';
import { compileLayoutA, LayoutA, WasmA } from './peers/layout-a-wasm.ts';
import { startNative } from './peers/native.ts';
import type { BenchContext, Row } from './rows.ts';
import { type Density, GIB, type Guest, type Leaves, PAGE, pagesOf, RANGES, SEED, stateOf, TIB } from './workloads.ts';

const HVA = 2 ** 44;

interface Door {
  operation: string;
  roots: 'direct' | 'mirror';
  leaves: Exclude<Leaves, 'mixed'>;
  density: Density;
  bytes: number;
  /** What it does to page tables, for the peers to do; none where that is not its work. */
  walk?: Walk;
  /** Pages of each range, and how many ranges; the whole guest at once unless given. */
  npages?: number;
  count?: number;
  /** Brings a fresh VM to the state that each round starts from. */
  prepare?(vm: Vm, bytes: number): void;
  run(vm: Vm, bytes: number, file: GuestMemfd | undefined): void;
  /** Each range of it, where ranges are not taken at once. */
  runRange?(startGfn: number, npages: number, file: GuestMemfd | undefined): void;
  /** Leaves changed so far, as the peers count them. */
  changed(vm: Vm): number;
  /** What must have happened. */
  did(vm: Vm, bytes: number): boolean;
  /** Whether its rows say what it adds to the engine's memory. */
  weighs?: boolean;
}

const KIND = { '4k': 'shmem', '2m': 'hugetlb2m' } as const;

/** Pages that a fragmented guest has or has not together. */
const RUN = 16;

/** Lets a TD's guest accept every page of the workload. Which are young makes no difference to what is done to a mirror here. */
function acceptAll(vm: Vm, guest: Guest): void {
  const vcpu = vm.vcpus[0];
  if (guest.density === 'full') {
    vcpu.accept({ gpa: 0, size: guest.bytes });
    return;
  }
  if (guest.density !== 'fragmented') throw new Error(`doors: no mirror is ${guest.density}`);
  for (let gfn = 0; gfn < pagesOf(guest); gfn += RUN) {
    if (stateOf(gfn, guest.density, SEED) !== 0) vcpu.accept({ gpa: gfn * PAGE, size: RUN * PAGE });
  }
}

/** The engine behind a door. */
class ThroughDoor extends Eptsim {
  readonly #door: Door;
  #file: GuestMemfd | undefined;
  /** What the last whole() added to the engine's memory. */
  bytes = 0;

  constructor(door: Door) {
    super();
    this.#door = door;
  }
  override takes(): boolean {
    return true;
  }
  protected override make(guest: Guest): Vm {
    const { roots, leaves, prepare } = this.#door;
    const { bytes } = guest;
    const vm = api.createVmSync({ memory: bytes, type: roots === 'mirror' ? 'tdx' : 'default' });
    vm.host.mmap({ hva: HVA, length: bytes, kind: KIND[leaves] });
    vm.host.access({ hva: HVA, length: bytes, write: true });
    const place = { slot: 0, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: HVA };
    if (roots === 'mirror') {
      this.#file = vm.createGuestMemfd({ size: bytes });
      vm.setUserMemoryRegion2({ ...place, flags: 4, guestMemfd: this.#file.fd, guestMemfdOffset: 0 });
      vm.setMemoryAttributes({ address: 0, size: bytes, attributes: 8 });
      acceptAll(vm, guest);
    } else {
      vm.setUserMemoryRegion(place);
      fillVm(vm, guest);
    }
    prepare?.(vm, bytes);
    return vm;
  }
  protected override changed(): number {
    return this.#door.changed(this.vm);
  }
  protected override doWhole(_walk: Walk, guest: Guest): void {
    this.#door.run(this.vm, guest.bytes, this.#file);
  }
  protected override doRanges(_walk: Walk, ranges: KvmGfnRanges): GfnRangesResult {
    return this.vm.unmapGfnRanges({ ...ranges, onlyPrivate: true });
  }
  override async whole(walk: Walk): Promise<Outcome> {
    const before = this.vm.memoryUsed;
    const outcome = await super.whole(walk);
    this.bytes = this.vm.memoryUsed - before;
    this.#check();
    return outcome;
  }
  override async ranges(walk: Walk, npages: number): Promise<Outcome> {
    const outcome = this.#door.runRange === undefined ? await super.ranges(walk, npages) : this.#oneByOne(npages);
    this.#check();
    return outcome;
  }
  #oneByOne(npages: number): Outcome {
    const { gfns, vm } = this;
    let before = this.changed();
    let leafs = 0;
    const begun = now();
    for (let at = 0; at < gfns.length; at++) {
      this.#door.runRange!(gfns[at], npages, this.#file);
      const spte = vm.spte(gfns[at] + (at & (npages - 1)));
      if (spte.class === 'leaf') throw new Error(`doors: ${this.#door.operation}: gfn ${gfns[at]} is still mapped`);
      const after = this.changed();
      leafs += after - before;
      before = after;
    }
    // Nothing is mapped where it was looked: all of them showed 0.
    return { ns: now() - begun, leafs, looked: 0 };
  }
  #check(): void {
    const { operation, roots, bytes, did } = this.#door;
    if (!did(this.vm, bytes)) throw new Error(`doors: ${operation} on ${roots} roots did not do its work`);
  }
}

const pages = (bytes: number) => bytes / PAGE;
const relog = (vm: Vm, bytes: number, flags: number) =>
  vm.setUserMemoryRegion({ slot: 0, flags, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: HVA });
const zapAll = (vm: Vm, bytes: number) =>
  void vm.unmapGfnRange({ slot: 0, start: 0, end: pages(bytes), onlyPrivate: vm.options.type === 'tdx' });

const mapped = (vm: Vm) => vm.stat('pages_4k') + vm.stat('pages_2m') + vm.stat('pages_1g');
const gone = (vm: Vm) => mapped(vm) === 0;
const zapped = (vm: Vm) => vm.stat('leafs_zapped_direct_4k') + vm.stat('leafs_zapped_mirror_4k');
const writeProtected = (vm: Vm) => vm.stat('leafs_write_protected');

function doorsOf(quick: boolean): Door[] {
  const large = (quick ? 1 : 64) * GIB;
  const half = (quick ? 1 : 16) * GIB;
  const direct = { roots: 'direct', leaves: '4k', density: 'full', changed: zapped } as const;
  const mirror = { ...direct, roots: 'mirror' } as const;
  const partly = (vm: Vm, bytes: number) => vm.stat('pages_4k') < pages(bytes);
  return [
    {
      ...direct,
      operation: 'map-whole',
      bytes: large,
      walk: 'map',
      prepare: zapAll,
      run: mapAll,
      changed: mapped,
      did: (vm, bytes) => vm.stat('pages_4k') === pages(bytes),
    },
    ...(['full', 'half'] as const).map(
      (density): Door => ({
        ...direct,
        density,
        operation: 'notifier-unmap-whole',
        bytes: density === 'full' ? large : half,
        walk: 'zap',
        run: (vm, bytes) => vm.host.munmap({ hva: HVA, length: bytes }),
        did: gone,
      }),
    ),
    ...(['full', 'fragmented'] as const).map(
      (density): Door => ({
        ...mirror,
        density,
        operation: 'gmem-punch-whole',
        bytes: density === 'full' ? large : half,
        walk: 'zap',
        run: (_vm, bytes, file) => file!.punchHole(0, bytes),
        did: gone,
      }),
    ),
    {
      ...mirror,
      operation: 'gmem-punch-2MiB',
      bytes: large,
      walk: 'zap',
      npages: 512,
      count: 2000,
      run: () => undefined,
      runRange: (start, npages, file) => file!.punchHole(start * PAGE, npages * PAGE),
      did: partly,
    },
    { ...mirror, operation: 'zap-whole', bytes: large, walk: 'zap', run: zapAll, did: gone },
    { ...mirror, density: 'fragmented', operation: 'zap-whole', bytes: half, walk: 'zap', run: zapAll, did: gone },
    ...RANGES.map(
      ([operation, length, most]): Door => ({
        ...mirror,
        operation,
        bytes: large,
        walk: 'zap',
        npages: length / PAGE,
        count: Math.max(1, Math.min(most, large / length / 2)),
        run: () => undefined,
        did: partly,
      }),
    ),
    {
      ...mirror,
      operation: 'accept-whole',
      bytes: large,
      prepare: zapAll,
      run: (vm, bytes) => void vm.vcpus[0].accept({ gpa: 0, size: bytes }),
      changed: mapped,
      did: (vm, bytes) => vm.stat('pages_4k') === pages(bytes),
    },
    {
      ...mirror,
      operation: 'set-attributes-private-whole',
      bytes: quick ? large : TIB,
      prepare: (vm, bytes) => vm.setMemoryAttributes({ address: 0, size: bytes, attributes: 0 }),
      run: (vm, bytes) => vm.setMemoryAttributes({ address: 0, size: bytes, attributes: 8 }),
      did: (vm, bytes) => vm.attributesOf(pages(bytes) - 1) === 8,
      weighs: true,
    },
    {
      ...mirror,
      operation: 'set-attributes-shared-whole',
      bytes: quick ? large : TIB,
      run: (vm, bytes) => vm.setMemoryAttributes({ address: 0, size: bytes, attributes: 0 }),
      did: gone,
      weighs: true,
    },
    {
      ...direct,
      density: 'half',
      operation: 'write-protect-whole',
      bytes: half,
      walk: 'write-protect',
      run: (vm, bytes) => relog(vm, bytes, 1),
      changed: writeProtected,
      did: (vm) => writeProtected(vm) === vm.stat('pages_4k'),
    },
    {
      ...direct,
      leaves: '2m',
      operation: 'split-2m-whole',
      bytes: large,
      walk: 'split',
      prepare: (vm) => vm.enableCap({ cap: 168, args: [1] }),
      run: (vm, bytes) => relog(vm, bytes, 1),
      changed: writeProtected,
      did: (vm) => vm.stat('pages_2m') === 0,
    },
    {
      ...direct,
      density: 'half',
      operation: 'invalidate-root-free-tables',
      bytes: half,
      walk: 'free',
      run: (vm) => vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: HVA }),
      did: gone,
    },
    {
      ...direct,
      density: 'half',
      operation: 'destroy',
      bytes: half,
      walk: 'free',
      run: (vm) => vm.destroy(),
      did: gone,
    },
  ];
}

export default async function doors({ quick, native, say }: BenchContext): Promise<Row[]> {
  const tables = new LayoutA(await compileLayoutA());
  const { process, peers: natives } = startNative({ native, say });
  const peers: Contender[] = [...natives, new WasmA(tables, 'tdp_iter'), new WasmA(tables, 'nested')];
  const rows: Row[] = [];
  try {
    for (const door of doorsOf(quick)) {
      const { operation, roots, bytes, density, leaves, walk } = door;
      const guest: Guest = { bytes, density, leaves };
      const engine = new ThroughDoor(door);
      const contenders = [...(walk === undefined ? [] : peers), engine];
      for (const contender of contenders) await contender.build(guest);
      const found = {
        question: 'doors',
        guest,
        operation,
        roots,
        walk: walk ?? 'zap',
        npages: door.npages ?? 0,
        count: door.count ?? 1,
        order: 'random',
      } as const;
      const measured = await measure(found, contenders, quick ? 3 : 7, quick ? 1 : 2, () => null);
      if (door.weighs) measured.at(-1)!.bytes = engine.bytes;
      rows.push(...measured);
      const { nsPerOperation, ratioToNativeIter: iter, ratioToNativeNested: nested } = measured.at(-1)!;
      const ratios = iter === null ? '' : `, ${iter.toPrecision(3)}x / ${nested?.toPrecision(3)}x`;
      const name = `${operation} (${roots}, ${bytes / GIB} GiB ${density} ${leaves})`;
      say(`${name}: ${(nsPerOperation! / 1000).toFixed(1)} us${ratios}`);
      for (const contender of contenders) await contender.close();
    }
  } finally {
    process?.quit();
  }
  return rows;
}
