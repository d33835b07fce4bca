const WORDS = {
  en: {
    clear: "Clear", send: "Send", stop: "Stop", again: "Try again", edit: "Edit", copy: "Copy", copied: "Copied", message: "Message",
    hint: "Say something", keys: "Enter sends, Shift+Enter is a new line, Esc stops, ↑ edits your last message",
    welcome: "Say hello", about: "What is said stays in this tab and is gone when you close it.", conversation: "Conversation",
    stopped: "Stopped.", length: "The reply was cut: it reached its longest length.", "choose-model": "Model", you: "You", it: "Reply",
    nothing: "The model said nothing.", editing: "You are editing an earlier message. What came after it will go.", cancel: "Cancel",
    settings: "Settings", system: "System prompt", "system-hint": "How the model should behave", "as-is": "default",
    temperature: "Temperature", top_p: "Top p", top_k: "Top k", max_tokens: "Longest reply", seed: "Seed", reset: "Reset",
  },
  zh: {
    clear: "清空", send: "发送", stop: "停止", again: "重新生成", edit: "编辑", copy: "复制", copied: "已复制", message: "消息",
    hint: "说点什么", keys: "回车发送，Shift+回车换行，Esc 停止，↑ 编辑上一条",
    welcome: "打个招呼吧", about: "对话只留在这个标签页里，关掉就没了。", conversation: "对话",
    stopped: "已停止。", length: "回复太长，被截断了。", "choose-model": "模型", you: "你", it: "回复",
    nothing: "模型没有说话。", editing: "正在编辑之前的消息，其后的内容会被替换。", cancel: "取消",
    settings: "设置", system: "系统提示", "system-hint": "希望模型怎样回答", "as-is": "默认",
    temperature: "温度", top_p: "Top p", top_k: "Top k", max_tokens: "最长回复", seed: "随机种子", reset: "恢复默认",
  },
};
