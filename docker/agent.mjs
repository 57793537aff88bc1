// Stands in for an agent: one request that the shipped rules allow, one that they deny, one that tries to go around the proxy.
import { connect } from 'node:net';

for (const url of ['https://example.com/', 'https://paste.example.net/']) {
  try {
    const response = await fetch(url);
    console.log(url, response.status);
  } catch (error) {
    console.log(url, 'refused:', error.cause?.message ?? error.message);
  }
}

const socket = connect({ host: '1.1.1.1', port: 443, timeout: 3000 });
socket.on('connect', () => console.log('direct connection: OPEN, the network is not confined'));
socket.on('error', (error) => console.log('direct connection:', error.code));
socket.on('timeout', () => {
  console.log('direct connection: no answer');
  socket.destroy();
});
socket.on('connect', () => socket.destroy());
