import { useLayoutEffect, useRef } from 'preact/hooks';
import { serverInfo } from '../api/server.js';
import { highlight } from '../markdown/highlight.js';
import { codeFrame } from '../markdown/view.js';
import type { CodePart, ResultFile, ToolPart } from '../state/types.js';
import { t } from '../text/index.js';
import { Icon, type IconName } from './icons.js';

/** A tool that was called, folded up once it has given something. */
export function ToolStep({ part, isLive }: { part: ToolPart; isLive: boolean }) {
  const { name, result } = part;
  const title = !result
    ? isLive
      ? t('toolRuns', name)
      : t('toolFailed', name)
    : result.ok
      ? t('toolUsed', name)
      : t('toolFailed', name);
  return (
    <Step
      icon="tool"
      title={title}
      detail={shortened(part.arguments)}
      isRunning={!result && isLive}
      isBad={result?.ok === false}
    >
      <Labelled label={t('input')} text={pretty(part.arguments)} language="json" />
      {result && <Labelled label={t('output')} text={pretty(result.content)} language={asJson(result.content)} />}
    </Step>
  );
}

/** Code that the model wrote for its interpreter. */
export function CodeStep({ part, isLive }: { part: CodePart; isLive: boolean }) {
  const { code, result } = part;
  const isBad = result !== undefined && result.status !== 'ok';
  const isRunning = !result && isLive;
  const title = isRunning ? t('codeRuns') : isBad || !result ? t('codeFailed') : t('codeRan');
  const images = (result?.files ?? []).filter(isImage);
  const others = (result?.files ?? []).filter((file) => !isImage(file));
  return (
    <>
      <Step icon="terminal" title={title} detail={shortened(code)} isRunning={isRunning} isBad={isBad}>
        <Labelled label={t('input')} text={code} language={serverInfo.value.interpreter ?? 'python'} />
        {result && result.text.trim() !== '' && <Labelled label={t('output')} text={result.text} language="" />}
      </Step>
      {images.map(({ name, url }) => (
        <figure key={name} class="result-image">
          <img src={url} alt={name} />
          <figcaption>{name}</figcaption>
        </figure>
      ))}
      {others.length > 0 && (
        <ul class="result-files">
          {others.map(({ name, url }) => (
            <li key={name}>
              <Icon name="file" />
              {url ? (
                <a href={url} download={name}>
                  {name}
                </a>
              ) : (
                name
              )}
            </li>
          ))}
        </ul>
      )}
    </>
  );
}

interface StepProps {
  icon: IconName;
  title: string;
  detail: string;
  isRunning: boolean;
  isBad: boolean;
  children: preact.ComponentChildren;
}

function Step({ icon, title, detail, isRunning, isBad, children }: StepProps) {
  return (
    <details class={`step ${isRunning ? 'is-running' : ''} ${isBad ? 'is-bad' : ''}`}>
      <summary>
        <Icon name={isBad ? 'warning' : icon} />
        <span class="step-title">{title}</span>
        <span class="step-detail">{detail}</span>
        <Icon name="right" />
      </summary>
      <div class="step-body">{children}</div>
    </details>
  );
}

function Labelled({ label, text, language }: { label: string; text: string; language: string }) {
  return (
    <div class="labelled">
      <p class="label">{label}</p>
      <Code text={text} language={language} />
    </div>
  );
}

function Code({ text, language }: { text: string; language: string }) {
  const root = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const code = document.createElement('code');
    code.textContent = text;
    root.current?.replaceChildren(codeFrame(code, language).querySelector('pre') as HTMLElement);
    highlight(code, language);
  }, [text, language]);
  return <div class="code" ref={root} />;
}

const IMAGE = /^data:image\/(?:png|jpeg|gif|webp|svg\+xml);base64,/;

// An SVG in an <img> runs no scripts and loads nothing.
function isImage({ url }: ResultFile): boolean {
  return url !== undefined && IMAGE.test(url);
}

function pretty(text: string): string {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function asJson(text: string): string {
  return /^\s*[[{]/.test(text) ? 'json' : '';
}

function shortened(text: string): string {
  let line = text.trim().replace(/\s+/g, ' ');
  try {
    const value: unknown = JSON.parse(text);
    if (typeof value === 'object' && value !== null) {
      line = Object.values(value)
        .map((each) => (typeof each === 'string' ? each : JSON.stringify(each)))
        .join(', ');
    }
  } catch {
    // Code is shown as it is.
  }
  return line.length > 60 ? `${line.slice(0, 59)}…` : line;
}
