// A VM with one private slot over a guest_memfd that can be bound elsewhere: for what the RMP remembers.

import {
  type CreateVmOptions,
  createVmSync,
  type GuestMemfd,
  KvmError,
  type PageSize,
  type Vm,
} from '../../src/index.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from './make-vm.ts';

export interface SnpSpec extends Partial<CreateVmOptions> {
  /** Pages of the file. */
  npages: number;
  /** The slot's first gfn (0), and its pages (all of the file's), from page 0 of the file on. All of it is private. */
  startGfn?: number;
  slotPages?: number;
  folioSize?: PageSize;
  /** Let KVM_HC_MAP_GPA_RANGE exit to userspace. */
  hypercalls?: boolean;
}

export interface SnpVm {
  vm: Vm;
  file: GuestMemfd;
  npages: number;
  /** Deletes the slot and binds pages [pgoff, pgoff + npages) of the file at `gfn` instead. */
  bindAt(gfn: number, npages: number, pgoff?: number): void;
}

export function makeSnp(spec: SnpSpec): SnpVm {
  const { npages, startGfn = 0, slotPages = npages, folioSize, hypercalls, ...options } = spec;
  const vm = createVmSync({
    type: 'snp',
    kernel: 'linux-6.16',
    memory: 2 ** 30,
    traceRecords: 65_536,
    debug: isDebugBuild,
    ...options,
  });
  if (hypercalls) vm.enableCap({ cap: 201, args: [1 << 12] });
  vm.host.mmap({ kind: 'anon4k', hva: SLOT_HVA, length: 2 ** 28 });
  const file = vm.createGuestMemfd({ size: npages * PAGE, folioSize });
  const region = { slot: 0, flags: 4, userspaceAddr: SLOT_HVA, guestMemfd: file.fd };
  const bind = (gfn: number, pages: number, pgoff: number) => {
    const place = { guestPhysAddr: gfn * PAGE, memorySize: pages * PAGE, guestMemfdOffset: pgoff * PAGE };
    // Congruent to the gfn, so that the slot's shape allows huge pages.
    vm.setUserMemoryRegion2({ ...region, ...place, userspaceAddr: SLOT_HVA + (gfn % 512) * PAGE });
  };
  bind(startGfn, slotPages, 0);
  vm.setMemoryAttributes({ address: startGfn * PAGE, size: slotPages * PAGE, attributes: 8 });
  vm.trace();
  return {
    vm,
    file,
    npages,
    bindAt(gfn, pages, pgoff = 0) {
      vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: 0, memorySize: 0, userspaceAddr: 0 });
      bind(gfn, pages, pgoff);
    },
  };
}

/** What becomes of `call` if its first reservation is refused. */
export function guarded(vm: Vm, call: () => unknown): string {
  const before = vm.snapshot();
  vm.failReservation(1);
  let outcome = 'it was not refused';
  try {
    const result = call();
    if ((result as { errno?: string } | undefined)?.errno === 'ENOMEM') outcome = 'ENOMEM';
  } catch (error) {
    if (!(error instanceof KvmError)) throw error;
    outcome = error.code;
  }
  vm.failReservation(0);
  const same = Buffer.compare(vm.snapshot(), before) === 0;
  return `${outcome}, ${same ? 'nothing changed' : 'the VM changed'}`;
}
