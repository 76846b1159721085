// A VM in the middle of its life: slots off every table's bound, an alias, leaves and contents of several kinds.

import { type CreateVmOptions, createVmSync, type HostKind, type Vm } from '../../src/index.ts';
import { isDebugBuild, PAGE, SLOT_HVA } from './make-vm.ts';

/** gfns of the first slot, on no table's bound, and of the second, which a guest_memfd backs too. */
export const FIRST = 0x1f0;
export const FIRST_PAGES = 1600;
export const SECOND = 0x1000;
export const SECOND_PAGES = 1024;
export const hvaOf = (gfn: number) => SLOT_HVA + gfn * PAGE;

/** A VM with two slots and an alias of the first, parts of it mapped, dirty, private: boundaries everywhere. */
export function prepared(options: Partial<CreateVmOptions>, kind: HostKind): Vm {
  const vm = createVmSync({ memory: 2 ** 30, vcpus: 2, debug: isDebugBuild, ...options });
  const isPrivate = vm.options.type !== 'default';
  vm.host.mmap({ kind, hva: hvaOf(0), length: 16384 * PAGE });
  const memory = { userspaceAddr: hvaOf(FIRST), memorySize: FIRST_PAGES * PAGE };
  vm.setUserMemoryRegion({ slot: 0, guestPhysAddr: FIRST * PAGE, flags: 1, ...memory });
  vm.setUserMemoryRegion({ slot: 1, guestPhysAddr: 0x2010 * PAGE, ...memory });
  const second = {
    slot: 2,
    guestPhysAddr: SECOND * PAGE,
    memorySize: SECOND_PAGES * PAGE,
    userspaceAddr: hvaOf(SECOND),
  };
  if (isPrivate) {
    const { fd } = vm.createGuestMemfd({ size: SECOND_PAGES * PAGE });
    vm.setUserMemoryRegion2({ ...second, flags: 4, guestMemfd: fd });
    vm.setMemoryAttributes({ address: (SECOND + 100) * PAGE, size: 700 * PAGE, attributes: 8 });
    const gpa = (SECOND + 100) * PAGE;
    if (vm.options.type === 'tdx') vm.vcpus[0].accept({ gpa, size: 600 * PAGE });
    vm.vcpus[0].access({ gpa, kind: 'write', count: 300, private: true });
  } else vm.setUserMemoryRegion(second);
  const shared = vm.options.type === 'tdx' ? 2 ** 47 : 0;
  vm.vcpus[0].access({ gpa: shared + FIRST * PAGE, kind: 'write', count: 900, private: false });
  vm.vcpus[1].access({ gpa: shared + (FIRST + 1000) * PAGE, kind: 'read', count: 100, private: false });
  vm.vcpus[1].access({ gpa: shared + 0x2010 * PAGE, kind: 'read', count: 700, private: false });
  return vm;
}
