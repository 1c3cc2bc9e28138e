import { render } from 'preact';
import { connect } from './api/server.js';
import { start } from './state/chats.js';
import { App } from './view/app.js';
import './styles/page.css';

const root = document.getElementById('app');
if (root) render(<App />, root);
void start();
void connect();
