export { buildApp } from './server.js';
