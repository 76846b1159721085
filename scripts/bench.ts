// Times the engine against its peers: see bench/run.ts.
// Usage: node scripts/run.mjs bench [QUESTION…] [--quick] [--guest GIB] [--json FILE] | --compare OLD NEW

import { UsageError } from '../bench/rows.ts';
import { main } from '../bench/run.ts';

try {
  process.exitCode = await main();
} catch (error) {
  const text = error instanceof Error ? (error.stack ?? error.message) : String(error);
  process.stderr.write(error instanceof UsageError ? `bench: ${error.message}\n` : `${text}\n`);
  process.exitCode = 2;
}
