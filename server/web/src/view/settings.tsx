import { useSignal } from '@preact/signals';
import { useRef } from 'preact/hooks';
import { connect } from '../api/server.js';
import { alter, current, newSystem } from '../state/chats.js';
import { change, PRESETS, type Settings, settings } from '../state/settings.js';
import { t, texts } from '../text/index.js';
import { exportAll, importFiles } from './conversations.js';
import { Dialog, IconButton } from './parts.js';
import { dialog } from './ui.js';

export function SettingsDialog() {
  const chat = current.value;
  const chooser = useRef<HTMLInputElement>(null);
  const keyAtStart = useRef(settings.value.key);
  const close = () => {
    dialog.value = undefined;
    if (settings.value.key !== keyAtStart.current) void connect();
  };
  return (
    <Dialog label={t('settings')} class="settings" onClose={close}>
      <header>
        <h2>{t('settings')}</h2>
        <IconButton icon="close" label={t('close')} onClick={close} />
      </header>
      <div class="settings-body">
        <section>
          <h3>{t('instructions')}</h3>
          <label class="field">
            <span>{t('systemPrompt')}</span>
            <textarea
              rows={3}
              placeholder={t('systemHint')}
              value={chat ? chat.system : newSystem.value}
              onInput={({ currentTarget: { value } }) => {
                if (chat) alter(chat.id, (each) => ({ ...each, system: value }), { isTouched: false });
                else newSystem.value = value;
              }}
            />
          </label>
        </section>
        <Answers />
        <section>
          <h3>{t('appearance')}</h3>
          <Choice
            label={t('language')}
            value={settings.value.language}
            values={[
              ['auto', t('auto')],
              ['zh', '中文'],
              ['en', 'English'],
            ]}
            onChange={(language) => change({ language })}
          />
          <Choice
            label={t('theme')}
            value={settings.value.theme}
            values={[
              ['auto', t('auto')],
              ['light', t('light')],
              ['dark', t('dark')],
            ]}
            onChange={(theme) => change({ theme })}
          />
        </section>
        <section>
          <h3>{t('access')}</h3>
          <form onSubmit={(event) => event.preventDefault()}>
            <KeyField />
          </form>
        </section>
        <section>
          <h3>{t('data')}</h3>
          <p class="hint">{t('dataHint')}</p>
          <div class="row">
            <button type="button" class="secondary" onClick={() => void exportAll()}>
              {t('exportAll')}
            </button>
            <button type="button" class="secondary" onClick={() => chooser.current?.click()}>
              {t('importFile')}
            </button>
            <input
              ref={chooser}
              id="import"
              type="file"
              accept=".json,application/json"
              multiple
              hidden
              aria-label={t('importFile')}
              onChange={({ currentTarget }) => {
                const files = [...(currentTarget.files ?? [])];
                close();
                void importFiles(files);
              }}
            />
          </div>
        </section>
        <section class="shortcuts">
          <h3>{t('shortcuts')}</h3>
          <dl>
            {texts().shortcutList.map(([key, what]) => (
              <div key={key}>
                <dt>
                  <kbd>{key}</kbd>
                </dt>
                <dd>{what}</dd>
              </div>
            ))}
          </dl>
          <p class="hint">
            <a href="licenses.txt" target="_blank" rel="noopener">
              {t('licenses')}
            </a>
          </p>
        </section>
      </div>
    </Dialog>
  );
}

function Answers() {
  const { temperature, topP, maxTokens, seed, dropOldest } = settings.value;
  const names = Object.keys(PRESETS) as (keyof typeof PRESETS)[];
  const chosen = names.find((name) => PRESETS[name].temperature === temperature && PRESETS[name].topP === topP);
  return (
    <section>
      <h3>{t('answers')}</h3>
      <Choice
        label={t('presets')}
        value={chosen}
        values={names.map((name) => [name, t(name)])}
        onChange={(name) => change(PRESETS[name])}
      />
      <Slider
        label={t('temperature')}
        hint={t('temperatureHint')}
        value={temperature ?? 1}
        most={2}
        onChange={(value) => change({ temperature: value })}
      />
      <Slider
        label={t('topP')}
        hint={t('topPHint')}
        value={topP ?? 1}
        most={1}
        onChange={(value) => change({ topP: value })}
      />
      <div class="row">
        <WholeNumber label={t('maxTokens')} hint={t('maxTokensHint')} name="maxTokens" value={maxTokens} least={1} />
        <WholeNumber label={t('seed')} hint={t('seedHint')} name="seed" value={seed} least={0} />
      </div>
      <label class="check">
        <input
          type="checkbox"
          checked={dropOldest}
          onChange={({ currentTarget }) => change({ dropOldest: currentTarget.checked })}
        />
        <span>{t('autoDrop')}</span>
      </label>
    </section>
  );
}

interface ChoiceProps<Value extends string> {
  label: string;
  value: Value | undefined;
  values: readonly (readonly [Value, string])[];
  onChange: (value: Value) => void;
}

function Choice<Value extends string>({ label, value, values, onChange }: ChoiceProps<Value>) {
  return (
    <fieldset class="choice">
      <legend>{label}</legend>
      <div class="segments">
        {values.map(([each, text]) => (
          <label key={each}>
            <input type="radio" name={label} value={each} checked={each === value} onChange={() => onChange(each)} />
            <span>{text}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}

interface SliderProps {
  label: string;
  hint: string;
  value: number;
  most: number;
  onChange: (value: number) => void;
}

function Slider({ label, hint, value, most, onChange }: SliderProps) {
  return (
    <label class="slider">
      <span class="slider-top">
        <span>{label}</span>
        <output>{value}</output>
      </span>
      <input
        type="range"
        min={0}
        max={most}
        step={0.05}
        value={value}
        onInput={({ currentTarget }) => onChange(Number(currentTarget.value))}
      />
      <span class="hint">{hint}</span>
    </label>
  );
}

interface WholeNumberProps {
  label: string;
  hint: string;
  name: 'maxTokens' | 'seed';
  value: number | undefined;
  least: number;
}

function WholeNumber({ label, hint, name, value, least }: WholeNumberProps) {
  return (
    <label class="field">
      <span>{label}</span>
      <input
        type="number"
        inputMode="numeric"
        min={least}
        max={2 ** 31 - 1}
        step={1}
        value={value ?? ''}
        onInput={({ currentTarget: { value: text, validity } }) => {
          if (text === '' && !validity.badInput) change({ [name]: undefined } as Partial<Settings>);
          else if (validity.valid) change({ [name]: Number(text) } as Partial<Settings>);
        }}
      />
      <span class="hint">{hint}</span>
    </label>
  );
}

export function KeyField({ id = 'key' }: { id?: string }) {
  const isShown = useSignal(false);
  return (
    <div class="field">
      <label for={id}>{t('key')}</label>
      <div class="key">
        <input
          id={id}
          type={isShown.value ? 'text' : 'password'}
          value={settings.value.key}
          autocomplete="off"
          spellcheck={false}
          onInput={({ currentTarget }) => change({ key: currentTarget.value.trim() })}
        />
        <button
          type="button"
          class="secondary"
          onClick={() => {
            isShown.value = !isShown.value;
          }}
        >
          {isShown.value ? t('hideKey') : t('showKey')}
        </button>
      </div>
    </div>
  );
}
