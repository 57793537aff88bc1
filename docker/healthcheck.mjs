// Ready means: rules loaded, CA usable, audit writable, not draining. Exit code 0 or 1, as HEALTHCHECK wants it.
import { get } from 'node:http';

const url = process.env.SUBFLOOR_HEALTH_URL ?? 'http://127.0.0.1:8081/readyz';
const request = get(url, { timeout: 2000 }, (response) => {
  response.resume();
  process.exit(response.statusCode === 200 ? 0 : 1);
});
request.on('timeout', () => process.exit(1));
request.on('error', () => process.exit(1));
