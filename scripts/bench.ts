// Times the engine against its peers: see bench/run.ts.
// Usage: node scripts/run.mjs bench [QUESTION…] [--quick] [--guest GIB] [--json FILE] | --compare OLD NEW

import { main } from '../bench/run.ts';

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`);
  process.exitCode = 2;
}
