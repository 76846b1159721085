// What does each way to change a guest's memory cost, end to end through the API?
//
// Native C has no such doors: these rows stand alone. Each operation works on a guest of the given kind, whose state is
// restored before every sample.

import type { GuestMemfd, Vm } from '../src/index.ts';
import { api, mapAll } from './peers/eptsim.ts';
import { type BenchContext, median, type Row, row, spreadOf } from './rows.ts';
import { GIB, hash, MIB, PAGE, rangeStarts, SEED, TIB } from './workloads.ts';

const HVA = 2 ** 44;

interface Door {
  operation: string;
  roots: 'direct' | 'mirror';
  leaves: '4k' | '2m';
  density: 'full' | 'half';
  bytes: number;
  /** How many operations one run is. */
  operations?: number;
  /** Brings a fresh VM to the state that each sample starts from. */
  prepare?(vm: Vm, bytes: number, file: GuestMemfd | undefined): void;
  run(vm: Vm, bytes: number, file: GuestMemfd | undefined): void;
  /** What must have happened. */
  did(vm: Vm, bytes: number): boolean;
}

const KIND = { '4k': 'shmem', '2m': 'hugetlb2m' } as const;

function guestOf(door: Door): { vm: Vm; file: GuestMemfd | undefined } {
  const { bytes, roots, leaves, density } = door;
  const vm = api.createVmSync({ memory: bytes, type: roots === 'mirror' ? 'tdx' : 'default' });
  vm.host.mmap({ hva: HVA, length: bytes, kind: KIND[leaves] });
  vm.host.access({ hva: HVA, length: bytes, write: true });
  let file: GuestMemfd | undefined;
  const place = { slot: 0, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: HVA };
  if (roots === 'mirror') {
    file = vm.createGuestMemfd({ size: bytes });
    vm.setUserMemoryRegion2({ ...place, flags: 4, guestMemfd: file.fd, guestMemfdOffset: 0 });
    vm.setMemoryAttributes({ address: 0, size: bytes, attributes: 8 });
  } else {
    vm.setUserMemoryRegion(place);
  }
  const vcpu = vm.vcpus[0];
  if (roots === 'mirror') vcpu.accept({ gpa: 0, size: bytes });
  else if (density === 'full') mapAll(vm, bytes);
  else {
    for (let gfn = 0; gfn < bytes / PAGE; gfn++) {
      const bits = hash(gfn, SEED);
      if (bits & 1) vcpu.access({ gpa: gfn * PAGE, kind: bits & 2 ? 'write' : 'read' });
    }
  }
  door.prepare?.(vm, bytes, file);
  return { vm, file };
}

const pages = (bytes: number) => bytes / PAGE;
const relog = (vm: Vm, bytes: number, flags: number) =>
  vm.setUserMemoryRegion({ slot: 0, flags, guestPhysAddr: 0, memorySize: bytes, userspaceAddr: HVA });

function doorsOf(quick: boolean): Door[] {
  const large = (quick ? 1 : 64) * GIB;
  const half = (quick ? 1 : 16) * GIB;
  const direct = { roots: 'direct', leaves: '4k', density: 'full' } as const;
  const mirror = { roots: 'mirror', leaves: '4k', density: 'full' } as const;
  const gone = (vm: Vm) => vm.stat('pages_4k') + vm.stat('pages_2m') + vm.stat('pages_1g') === 0;
  return [
    {
      ...direct,
      operation: 'map-whole',
      bytes: large,
      prepare: (vm, bytes) => void vm.unmapGfnRange({ slot: 0, start: 0, end: pages(bytes) }),
      run: mapAll,
      did: (vm, bytes) => vm.stat('pages_4k') === pages(bytes),
    },
    ...(['full', 'half'] as const).map(
      (density): Door => ({
        ...direct,
        density,
        operation: 'notifier-unmap-whole',
        bytes: density === 'full' ? large : half,
        run: (vm, bytes) => vm.host.munmap({ hva: HVA, length: bytes }),
        did: gone,
      }),
    ),
    {
      ...mirror,
      operation: 'gmem-punch-whole',
      bytes: large,
      run: (_vm, bytes, file) => file!.punchHole(0, bytes),
      did: gone,
    },
    {
      ...mirror,
      operation: 'gmem-punch-2MiB',
      bytes: large,
      operations: 200,
      run: (_vm, bytes, file) => {
        for (let at = 0; at < 200; at++) file!.punchHole((hash(at, SEED) % (bytes / (2 * MIB))) * 2 * MIB, 2 * MIB);
      },
      did: (vm, bytes) => vm.stat('pages_4k') < pages(bytes),
    },
    {
      ...mirror,
      operation: 'zap-whole',
      bytes: large,
      run: (vm, bytes) => {
        vm.unmapGfnRange({ slot: 0, start: 0, end: pages(bytes), onlyPrivate: true });
      },
      did: gone,
    },
    ...(
      [
        ['zap-1GiB', GIB, 8],
        ['zap-2MiB', 2 * MIB, 400],
        ['zap-64KiB', 16 * PAGE, 2000],
        ['zap-4KiB', PAGE, 10_000],
      ] as const
    ).map(([operation, length, most]): Door => {
      const operations = Math.max(1, Math.min(most, large / length / 2));
      const npages = length / PAGE;
      return {
        ...mirror,
        operation,
        bytes: large,
        operations,
        run: (vm, bytes) => {
          const starts = rangeStarts({ bytes, density: 'full', leaves: '4k' }, npages, operations, 'random', SEED);
          vm.unmapGfnRanges({ slot: 0, starts: Float64Array.from(starts), npages, onlyPrivate: true });
        },
        did: (vm, bytes) => vm.stat('pages_4k') < pages(bytes),
      };
    }),
    {
      ...mirror,
      operation: 'accept-whole',
      bytes: large,
      prepare: (vm, bytes) => void vm.unmapGfnRange({ slot: 0, start: 0, end: pages(bytes), onlyPrivate: true }),
      run: (vm, bytes) => void vm.vcpus[0].accept({ gpa: 0, size: bytes }),
      did: (vm, bytes) => vm.stat('pages_4k') === pages(bytes),
    },
    {
      ...mirror,
      operation: 'set-attributes-private-whole',
      bytes: quick ? large : TIB,
      prepare: (vm, bytes) => vm.setMemoryAttributes({ address: 0, size: bytes, attributes: 0 }),
      run: (vm, bytes) => vm.setMemoryAttributes({ address: 0, size: bytes, attributes: 8 }),
      did: (vm, bytes) => vm.attributesOf(pages(bytes) - 1) === 8,
    },
    {
      ...mirror,
      operation: 'set-attributes-shared-whole',
      bytes: quick ? large : TIB,
      run: (vm, bytes) => vm.setMemoryAttributes({ address: 0, size: bytes, attributes: 0 }),
      did: gone,
    },
    {
      ...direct,
      operation: 'age-whole',
      bytes: large,
      run: (vm, bytes) => void vm.ageGfn({ slot: 0, start: 0, end: pages(bytes) }),
      did: (vm, bytes) => vm.stat('leafs_aged') === pages(bytes),
    },
    {
      ...direct,
      density: 'half',
      operation: 'write-protect-whole',
      bytes: half,
      run: (vm, bytes) => relog(vm, bytes, 1),
      did: (vm) => !vm.leafs().some(({ spte }) => spte.writable),
    },
    {
      ...direct,
      leaves: '2m',
      operation: 'split-2m-whole',
      bytes: large,
      prepare: (vm) => vm.enableCap({ cap: 168, args: [1] }),
      run: (vm, bytes) => relog(vm, bytes, 1),
      did: (vm) => vm.stat('pages_2m') === 0,
    },
    {
      ...direct,
      density: 'half',
      operation: 'invalidate-root-free-tables',
      bytes: half,
      run: (vm, bytes) =>
        vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: HVA + bytes - bytes }),
      did: gone,
    },
    {
      ...direct,
      density: 'half',
      operation: 'destroy',
      bytes: half,
      run: (vm) => vm.destroy(),
      did: gone,
    },
  ];
}

export default async function doors({ quick, say }: BenchContext): Promise<Row[]> {
  const rows: Row[] = [];
  for (const door of doorsOf(quick)) {
    const { vm, file } = guestOf(door);
    const snapshot = vm.snapshot();
    const samples: number[] = [];
    const operations = door.operations ?? 1;
    for (let round = -3; round < (quick ? 3 : 11); round++) {
      vm.restore(snapshot);
      const start = performance.now();
      door.run(vm, door.bytes, file);
      const ns = (performance.now() - start) * 1e6;
      if (!door.did(vm, door.bytes))
        throw new Error(`doors: ${door.operation} on ${door.roots} roots did not do its work`);
      if (round >= 0) samples.push(ns / operations);
    }
    const nsPerOperation = median(samples);
    say(
      `${door.operation} (${door.roots}, ${door.bytes / GIB} GiB ${door.density} ${door.leaves}): ${(nsPerOperation / 1000).toFixed(1)} us`,
    );
    rows.push(
      row({
        question: 'doors',
        guestBytes: door.bytes,
        density: door.density,
        operation: door.operation,
        leaves: door.leaves,
        roots: door.roots,
        planes: door.density === 'full' ? 0 : 2,
        contender: 'eptsim',
        nsPerOperation,
        nsPerPage: operations === 1 ? nsPerOperation / pages(door.bytes) : null,
        operations,
        samples: samples.length,
        spread: spreadOf(samples),
        order: operations === 1 ? undefined : 'random',
      }),
    );
  }
  return rows;
}
