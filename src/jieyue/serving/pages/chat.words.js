const WORDS = {
  en: {
    clear: "Clear", send: "Send", stop: "Stop", again: "Try again", edit: "Edit", message: "Message", hint: "Say something",
    keys: "Enter sends, Shift+Enter is a new line, Esc stops, ↑ edits your last message",
    welcome: "Say hello", about: "What is said stays in this tab and is gone when you close it.", conversation: "Conversation",
    stopped: "Stopped.", length: "The reply was cut: it reached its longest length.", unreachable: "The server cannot be reached.",
    busy: "The server is busy. Try again in a moment.", "needs-key": "A key is needed.", key: "Key", enter: "Enter",
    "choose-model": "Model", "page-chat": "Chat", "page-read": "Read", "page-title": "Title", you: "You", it: "Reply",
    nothing: "The model said nothing.",
  },
  zh: {
    clear: "清空", send: "发送", stop: "停止", again: "重新生成", edit: "编辑", message: "消息", hint: "说点什么",
    keys: "回车发送，Shift+回车换行，Esc 停止，↑ 编辑上一条",
    welcome: "打个招呼吧", about: "对话只留在这个标签页里，关掉就没了。", conversation: "对话",
    stopped: "已停止。", length: "回复太长，被截断了。", unreachable: "连不上服务器。",
    busy: "服务器正忙，请稍后再试。", "needs-key": "需要密钥。", key: "密钥", enter: "确定",
    "choose-model": "模型", "page-chat": "聊天", "page-read": "阅读", "page-title": "标题", you: "你", it: "回复",
    nothing: "模型没有说话。",
  },
};
