// VMs for tests, and what a test says of them.

import { expect } from 'vitest';
import { type CreateVmOptions, createVmSync, type GuestMemfd, type Vm } from '../../src/index.ts';
import { claimOf } from './events.ts';

export const PAGE = 4096;
/** Where the first slot's host memory starts; each slot has 1 TiB of address space of its own. */
export const SLOT_HVA = 0x100000000000;
const SLOT_HVA_STRIDE = 0x10000000000;

/** The build of the engine that this run of the tests is about. */
export const isDebugBuild = process.env.EPTSIM_BUILD === 'debug';

export interface SlotSpec {
  startGfn: number;
  npages: number;
  asId?: number;
  flags?: number;
  /** Backed by a guest_memfd of its own, beside host memory. */
  guestMemfd?: boolean;
  /** The kind of host memory; anon4k if not given, none if null. */
  kind?: Parameters<Vm['host']['mmap']>[0]['kind'] | null;
}

export interface VmSpec extends Partial<CreateVmOptions> {
  slots?: SlotSpec[];
  /** gfns that the guest has written, on vCPU 0. */
  mapped?: number[];
  /** gfns that are private, accepted on a TD and written, on vCPU 0. */
  mappedPrivate?: number[];
}

/** A VM with the guest_memfd of each slot, in the order of the slots. */
export type TestVm = Vm & { readonly slotFiles: readonly (GuestMemfd | undefined)[] };

/** Makes a VM with slots 0, 1, … and their memory; the trace is on and empty. */
export function makeVm(spec: VmSpec = {}): TestVm {
  const { slots = [], mapped = [], mappedPrivate = [], ...options } = spec;
  const pages = slots.reduce((sum, slot) => sum + slot.npages, 0);
  const vm = createVmSync({
    memory: Math.max(pages, 1) * PAGE,
    traceRecords: 65_536,
    debug: isDebugBuild,
    ...options,
  });
  const slotFiles = slots.map((slot, id) => addSlot(vm, id, slot));
  for (const gfn of mapped) vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'write', private: false });
  for (const gfn of mappedPrivate) {
    vm.setMemoryAttributes({ address: gfn * PAGE, size: PAGE, attributes: 8 });
    if (vm.options.type === 'tdx') vm.vcpus[0].accept({ gpa: gfn * PAGE, size: PAGE });
    vm.vcpus[0].access({ gpa: gfn * PAGE, kind: 'write', private: true });
  }
  vm.trace();
  return Object.assign(vm, { slotFiles });
}

function addSlot(vm: Vm, id: number, slot: SlotSpec): GuestMemfd | undefined {
  const size = slot.npages * PAGE;
  // Congruent to the guest address modulo 1G, so that huge pages are possible.
  const userspaceAddr = SLOT_HVA + id * SLOT_HVA_STRIDE + ((slot.startGfn * PAGE) % 2 ** 30);
  if (slot.kind !== null) vm.host.mmap({ kind: slot.kind ?? 'anon4k', hva: userspaceAddr, length: size });
  const region = {
    slot: (slot.asId ?? 0) * 65_536 + id,
    flags: slot.flags ?? 0,
    guestPhysAddr: slot.startGfn * PAGE,
    memorySize: size,
    userspaceAddr,
  };
  if (!slot.guestMemfd) {
    vm.setUserMemoryRegion(region);
    return undefined;
  }
  const guestMemfd = vm.createGuestMemfd({ size });
  vm.setUserMemoryRegion2({ ...region, flags: region.flags | 4, guestMemfd: guestMemfd.fd });
  return guestMemfd;
}

/** Drains the trace and compares it, as claims, in order: what only frames other events is left out. */
export function expectTrace(vm: Vm, claims: readonly string[]): void {
  expect(vm.trace().flatMap((event) => claimOf(event as never))).toEqual(claims);
}
