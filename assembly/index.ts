// The ABI: what TypeScript may call.

/** Returns the version of this ABI. */
export function abiVersion(): u32 {
  return 1;
}
