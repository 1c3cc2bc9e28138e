#!/usr/bin/env node
import { createServer } from '../server.js';

const model = process.argv[2];
const server = createServer({ ...(model === undefined ? {} : { model }), logger: true });
server.listen().then((address) => console.log(`Listening on ${address}`));
