// Shows on the node itself what a node of ours says, and lets "Edit Plan" take the plan's lines over to change them.
import { app } from "../../scripts/app.js";

const SHOWING = ["KSGenEditPlan", "KSGenRetrieveExamples", "KSGenStepLoopEnd"];

app.registerExtension({
  name: "ksgen.shownText",
  nodeCreated(node) {
    if (!SHOWING.includes(node.comfyClass)) return;
    const area = document.createElement("textarea");
    area.readOnly = true;
    area.className = "comfy-multiline-input";
    // Neither the saved graph nor the prompt holds what is only shown.
    const shown = node.addDOMWidget("shown", "ksgen_shown", area, { serialize: false });
    shown.serialize = false;
    const executed = node.onExecuted;
    node.onExecuted = function (output) {
      executed?.apply(this, arguments);
      // A loop's end that the host remembers as a whole says nothing anew.
      if (output?.text) area.value = output.text.join("\n");
    };
    if (node.comfyClass !== "KSGenEditPlan") return;
    const takeOver = () => {
      // What is shown is not saved: before the first run there is nothing to take over.
      if (area.value) node.widgets.find((widget) => widget.name === "text").value = area.value;
    };
    node.addWidget("button", "edit these lines", null, takeOver, { serialize: false }).serialize = false;
  },
});
